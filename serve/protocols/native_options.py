"""Options of a detect request: text from the query, a form or JSON → typed values, each refused under its own name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from models.errors import InvalidOptionError
from models.types import DetectOptions, Thresholds
from serve.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

NAMES: Final = ("conf", "iou", "max_det", "classes", "normalize", "decimals")
MAX_DECIMALS: Final = 10
DEFAULT_DECIMALS: Final = 5
MAX_FIELDS: Final = 512
"""Most name=value pairs of one query; ``classes`` may repeat, so it is well above the number of options."""

BLANKS: Final = " \t\r\n\f\v"
"""May stand around the parts of ``classes``; Python's own notion of blanks is wider than any schema can say."""

# Stricter than float() and int(), which also take underscores, other scripts' digits, "nan" and "infinity".
_NUMBER: Final = re.compile(r"[+-]?(\d{1,32}(\.\d{0,32})?|\.\d{1,32})([eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE: Final = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for, valid by itself; ``classes`` still holds ids and names as the client wrote them."""

    conf: float | None = None
    iou: float | None = None
    max_det: int | None = None
    classes: tuple[str, ...] | None = None
    normalize: bool = False
    decimals: int = DEFAULT_DECIMALS

    def resolve(self, names: Sequence[str]) -> DetectOptions:
        """Return the engine's options under the release whose class names are ``names``.

        A value that is as a whole the name of a class means that class; otherwise commas separate, and each
        part is an id or a name. A number always means an id. Raises OptionError for a class the release does not have.
        """
        if self.classes is None:
            return DetectOptions(conf=self.conf, iou=self.iou, max_det=self.max_det)
        ids = {name: index for index, name in enumerate(names)}
        chosen: set[int] = set()
        for value in self.classes:
            for part in (value,) if value in ids else value.split(","):
                chosen.add(_class_id(part.strip(BLANKS), ids))
        return DetectOptions(conf=self.conf, iou=self.iou, max_det=self.max_det, classes=frozenset(chosen))


DEFAULT: Final = Asked()


def _class_id(part: str, ids: dict[str, int]) -> int:
    index = int(part) if _WHOLE.fullmatch(part) else ids.get(part, -1)
    if not 0 <= index < len(ids):
        msg = f"classes: the serving version has no class {part[:64]!r}; GET /v1/models lists its classes"
        raise OptionError(msg, parameter="classes")
    return index


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Return the name=value pairs of a raw query string. Raises OptionError where it is not UTF-8 or too long."""
    if not query:
        return []
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        msg = f"The query is not percent-encoded UTF-8, or has more than {MAX_FIELDS} fields"
        raise OptionError(msg, parameter="query") from None


def parse_options(pairs: Iterable[tuple[str, str]]) -> Asked:
    """Return what ``pairs`` ask for. Only ``classes`` may repeat.

    Raises OptionError, which names the parameter, for an unknown name (a misspelt ``conf`` that were ignored would
    answer at another threshold), a repetition, a wrong type or a value out of range.
    """
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    if not given:
        return DEFAULT
    for name, values in given.items():
        if name not in NAMES:
            msg = f"There is no option {name[:64]!r}; the options are {', '.join(NAMES)}"
            raise OptionError(msg, parameter=name[:64])
        if len(values) > 1 and name != "classes":
            msg = f"{name} is given {len(values)} times; give it once"
            raise OptionError(msg, parameter=name)
    one = {name: values[0] for name, values in given.items()}
    conf, iou = (_number(name, one[name]) if name in one else None for name in ("conf", "iou"))
    max_det = _whole("max_det", one["max_det"]) if "max_det" in one else None
    _check_range(conf=conf, iou=iou, max_det=max_det)
    return Asked(
        conf=conf,
        iou=iou,
        max_det=max_det,
        classes=_classes(given["classes"]) if "classes" in given else None,
        normalize=_truth("normalize", one["normalize"]) if "normalize" in one else False,
        decimals=_decimals(one["decimals"]) if "decimals" in one else DEFAULT_DECIMALS,
    )


def _check_range(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None:
            try:
                Thresholds(**{name: value})  # type: ignore[arg-type]
            except InvalidOptionError as error:
                raise OptionError(str(error), parameter=name) from None


def _number(name: str, text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        msg = f"{name}={text[:64]!r} is not a number; send a number from 0 to 1"
        raise OptionError(msg, parameter=name)
    return value


def _whole(name: str, text: str) -> int:
    if not _WHOLE.fullmatch(text):
        msg = f"{name}={text[:64]!r} is not a whole number"
        raise OptionError(msg, parameter=name)
    return int(text)


def _decimals(text: str) -> int:
    value = _whole("decimals", text)
    if not 0 <= value <= MAX_DECIMALS:
        msg = f"decimals={value} is outside 0 to {MAX_DECIMALS}; send a whole number in that range"
        raise OptionError(msg, parameter="decimals")
    return value


def _truth(name: str, text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        msg = f"{name}={text[:64]!r} is neither true nor false"
        raise OptionError(msg, parameter=name) from None


def _classes(values: list[str]) -> tuple[str, ...]:
    if not all(part.strip(BLANKS) for value in values for part in value.split(",")):
        msg = "classes holds an empty entry; send ids or names separated by commas, or leave it out for all"
        raise OptionError(msg, parameter="classes")
    return tuple(values)
