"""Request ids, deadlines and traces at the door."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.context import build_context, request_id_of
from serve.errors import OptionError

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@given(st.binary(max_size=200))
def test_an_id_is_always_safe_to_log_and_to_send_on(value: bytes) -> None:
    """Whatever a client sends, the id holds only safe characters; a safe one is kept."""
    kept = request_id_of([(b"x-request-id", value)])
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", kept)
    if re.fullmatch(rb"[A-Za-z0-9._:-]{1,128}", value):
        assert kept == value.decode()


def test_ids_made_here_differ() -> None:
    """Two requests without an id are told apart."""
    assert request_id_of([]) != request_id_of([])


@pytest.mark.parametrize(
    ("header", "deadline"),
    [(None, 130.0), (b"2.5", 102.5), (b"600", 130.0), (b"0.001", 100.001), (b"5e-1", 100.5), (b"1e300", 130.0)],
)
def test_the_nearer_deadline_counts(header: bytes | None, deadline: float) -> None:
    """A client may shorten its time, never lengthen it beyond the service's limit."""
    headers = [] if header is None else [(b"x-request-timeout", header)]
    context = build_context(headers, request_id="a", now=100.0, longest_s=30.0)
    assert context.deadline == pytest.approx(deadline)


@pytest.mark.parametrize(
    "header", [b"0", b"-1", b"nan", b"inf", b"5e-324", b"0.0009", b"", b"soon", b"1_0", "٣".encode(), b"0.0"]
)
def test_a_timeout_that_is_no_time_is_refused(header: bytes) -> None:
    """The refusal names the header."""
    with pytest.raises(OptionError) as caught:
        build_context([(b"x-request-timeout", header)], request_id="a", now=0.0, longest_s=30.0)
    assert caught.value.parameter == "X-Request-Timeout"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (TRACE, True),
        (b"ff" + TRACE[2:], False),
        (b"00-" + b"0" * 32 + TRACE[35:], False),
        (TRACE.upper(), False),
        (TRACE + b"-x", False),
    ],
)
def test_only_a_standard_traceparent_is_passed_on(header: bytes, *, kept: bool) -> None:
    """A broken trace header is ignored, as the standard demands, not refused."""
    context = build_context([(b"traceparent", header)], request_id="a", now=0.0, longest_s=30.0)
    assert context.traceparent == (header.decode() if kept else None)


@pytest.mark.parametrize(
    ("header", "client_id"),
    [(b"till-7", "till-7"), (b"a" * 128, "a" * 128), (b"a" * 129, None), (b"", None), (b"a b", None), (b"\xff", None)],
)
def test_a_client_is_known_by_its_id(header: bytes, client_id: str | None) -> None:
    """One that could not be an id is as good as none, never an error."""
    context = build_context([(b"x-client-id", header)], request_id="a", now=0.0, longest_s=30.0)
    assert context.client_id == client_id
