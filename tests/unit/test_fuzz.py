"""The fuzzer's readers hold for its seeds and for changed seeds; ``tests/fuzz/decode.py`` itself goes on for hours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).parents[1] / "fuzz"
SEEDS = {path.name: path.read_bytes() for path in sorted((FOLDER / "seeds").iterdir())}


def load() -> ModuleType:
    """Return the fuzzer, which is a script."""
    spec = importlib.util.spec_from_file_location("fuzz_decode", FOLDER / "decode.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fuzz: Any = load()


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_answered(name: str) -> None:
    """Each ends in a picture, parsed options, or an error that clients get as a 4xx."""
    fuzz.try_one(SEEDS[name])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(0, 255)), max_size=6),
    cut=st.floats(0.2, 1.0),
    inserted=st.binary(max_size=12),
)
def test_changed_seeds_are_answered(name: str, changes: list[tuple[float, int]], cut: float, inserted: bytes) -> None:
    """Bytes that were overwritten, cut off or put in between change nothing about that."""
    data = bytearray(SEEDS[name])
    for where, value in changes:
        data[min(int(where * len(data)), len(data) - 1)] = value
    at = int(cut * len(data))
    fuzz.try_one(bytes(data[:at]) + inserted + bytes(data[at:] if len(inserted) % 2 else b""))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    """So do bytes that mean nothing."""
    for reader in fuzz.READERS:
        reader(data)


def test_a_reader_that_raises_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: an unforeseen exception is not taken for an answer."""

    def broken(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr(fuzz, "decode", broken)
    with pytest.raises(IndexError):
        fuzz.try_one(b"\0data")
