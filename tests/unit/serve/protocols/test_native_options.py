"""Options from text: what is accepted, what is refused, and under which name."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.types import DetectOptions
from serve.errors import OptionError
from serve.protocols.native_options import DEFAULT, NAMES, Asked, parse_options, parse_query

CLASSES = ("apple", "banana", "tv, small", "0")


def asked(query: str) -> Asked:
    """Parse a query as the route does."""
    return parse_options(parse_query(query.encode()))


@given(
    conf=st.floats(0, 1),
    iou=st.floats(0, 1),
    max_det=st.integers(1, 300),
    normalize=st.booleans(),
    decimals=st.integers(0, 10),
)
def test_every_valid_query_comes_back_exactly(
    *,
    conf: float,
    iou: float,
    max_det: int,
    normalize: bool,
    decimals: int,
) -> None:
    """Writing options into a query and parsing them changes no bit of them."""
    query = {
        "conf": repr(conf),
        "iou": repr(iou),
        "max_det": max_det,
        "normalize": str(normalize),
        "decimals": decimals,
    }
    parsed = asked(urlencode(query))
    assert parsed == Asked(conf=conf, iou=iou, max_det=max_det, normalize=normalize, decimals=decimals)


@given(st.binary(max_size=60))
def test_any_query_is_parsed_or_refused_by_name(query: bytes) -> None:
    """No byte string a client puts behind the question mark is a crash."""
    try:
        parse_options(parse_query(query)).resolve(CLASSES)
    except OptionError as error:
        assert error.parameter is not None  # noqa: PT017 - a parsed query is as good an outcome


@given(st.sampled_from(NAMES), st.text(max_size=12))
def test_any_value_is_parsed_or_refused_under_its_own_name(name: str, value: str) -> None:
    """The parameter that a refusal names is the one at fault."""
    try:
        parse_options([(name, value)]).resolve(CLASSES)
    except OptionError as error:
        assert error.parameter == name  # noqa: PT017 - a parsed value is as good an outcome


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("conf=7", "conf"),
        ("conf=-0.1", "conf"),
        ("conf=nan", "conf"),
        ("conf=inf", "conf"),
        ("conf=1e999", "conf"),
        ("conf=1_0", "conf"),
        ("conf=", "conf"),
        ("conf", "conf"),
        ("conf=0.5&conf=0.6", "conf"),
        ("iou=2", "iou"),
        ("iou=x", "iou"),
        ("max_det=0", "max_det"),
        ("max_det=301", "max_det"),
        ("max_det=1.5", "max_det"),
        ("max_det=99999999999999999999", "max_det"),
        ("decimals=11", "decimals"),
        ("decimals=-1", "decimals"),
        ("normalize=maybe", "normalize"),
        ("classes=", "classes"),
        ("classes=1,,2", "classes"),
        ("classes=-1", "classes"),
        ("classes=4", "classes"),
        ("classes=pear", "classes"),
        ("confidence=0.5", "confidence"),
        ("conf=%ff", "query"),
        ("&".join(["classes=1"] * 600), "query"),
    ],
)
def test_each_wrong_option_is_refused_under_its_name(query: str, parameter: str) -> None:
    """A client learns which option to mend."""
    with pytest.raises(OptionError) as caught:
        asked(query).resolve(CLASSES)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("classes=0", {0}),
        ("classes=0,2", {0, 2}),
        ("classes=0&classes=1", {0, 1}),
        ("classes=banana,0", {0, 1}),
        ("classes=apple&classes=%20banana", {0, 1}),
        ("classes=tv%2C+small", {2}),
        ("classes=3", {3}),
    ],
)
def test_classes_are_ids_or_names_separated_or_repeated(query: str, ids: set[int]) -> None:
    """A name that holds a comma still means its class, and a number always means an id."""
    assert asked(query).resolve(CLASSES).classes == ids


def test_no_options_mean_the_release_s_defaults() -> None:
    """An empty query costs nothing and asks for nothing."""
    assert asked("") is DEFAULT
    assert DEFAULT.resolve(CLASSES) == DetectOptions()
