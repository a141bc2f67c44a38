"""What a child says is data: whatever its bytes, the parent keeps its head and its deadline."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.weights import child_output
from models.weights.child_output import MAX_LINE, Listener, read_until_end, wait_until


def heard(*pieces: bytes) -> tuple[Listener, list[tuple[str, float]]]:
    """Return a listener that has heard ``pieces``, and the progress that it passed on."""
    progress: list[tuple[str, float]] = []
    listener = Listener(lambda stage, done: progress.append((stage, done)))
    for piece in pieces:
        listener.hear(piece)
    return listener, progress


@pytest.mark.parametrize(
    "line",
    [
        b'{"stage": "x", "fraction": null}',
        b'{"stage": "x", "fraction": "half"}',
        b'{"stage": "x", "fraction": [1]}',
        b'{"stage": "x", "fraction": NaN}',
        b'{"stage": "x"}',
        b'{"stage": 7, "fraction": 0.5}',
        b'{"network": 7}',
        b'{"result": 7}',
        b'{"error": 7}',
        b"[1, 2]",
        b"7",
        b"null",
        b"[" * 200_000,
        b"\xff\xfe",
    ],
)
def test_lines_that_make_no_sense_are_passed_over(line: bytes) -> None:
    """The next line counts as if nothing had been."""
    listener, progress = heard(line + b"\n", b'{"stage": "y", "fraction": 0.5}\n{"result": {}}\n')
    assert (listener.outcome, progress, listener.network) == ({"result": {}}, [("y", 0.5)], None)


@pytest.mark.parametrize(("fraction", "passed"), [("7", 1.0), ("-3", 0.0), ("1" + "0" * 400, 1.0), ("Infinity", 1.0)])
def test_fractions_are_kept_within_their_range(fraction: str, passed: float) -> None:
    """A bar shows no more than done and no less than begun."""
    assert heard(f'{{"stage": "x", "fraction": {fraction}}}\n'.encode())[1] == [("x", passed)]


@given(st.binary(), st.lists(st.integers(0, 120)))
def test_lines_are_the_same_however_they_are_cut(noise: bytes, cuts: list[int]) -> None:
    """A pipe hands out bytes in pieces of its own choice."""
    text = noise.replace(b"{", b"") + b'\n{"network": "shared"}\n{"stage": "x", "fraction": 0.5}\n{"error": "no"}\n'
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    listener, progress = heard(*(text[a:b] for a, b in itertools.pairwise(edges)))
    assert (listener.outcome, progress, listener.network) == ({"error": "no"}, [("x", 0.5)], "shared")


def test_a_line_without_end_takes_bounded_memory() -> None:
    """Its bytes are dropped; what follows the next line break is heard."""
    listener, _ = heard(*[b"x" * (MAX_LINE // 4)] * 9, b'\n{"result": {}}\n')
    assert len(listener._rest) <= MAX_LINE
    assert listener.outcome == {"result": {}}


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list whose processes are ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for child in started:
        child.kill()
        child.wait()


def start(children: list[subprocess.Popen[bytes]], code: str) -> int:
    """Start Python on ``code`` and return its process id."""
    children.append(subprocess.Popen([sys.executable, "-c", code]))
    return children[-1].pid


def test_a_silent_child_is_left_at_the_deadline(children: list[subprocess.Popen[bytes]]) -> None:
    """Neither an open pipe nor a child that goes on holds the reader up."""
    pid = start(children, "import time; time.sleep(60)")
    reader, writer = os.pipe()
    try:
        with os.fdopen(reader, "rb") as stdout:
            deadline = time.monotonic() + 0.2
            assert list(read_until_end(stdout, pid, deadline)) == []
            assert wait_until(pid, deadline) is False
    finally:
        os.close(writer)


def test_a_pipe_that_outlives_the_child_is_emptied_and_left(
    children: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the child said before its end counts; whoever else holds or fills the pipe is not waited for."""
    pid = start(children, "")
    deadline = time.monotonic() + 60
    assert wait_until(pid, deadline)
    reader, writer = os.pipe()
    try:
        with os.fdopen(reader, "rb") as stdout:
            os.write(writer, json.dumps({"result": {}}).encode())
            assert b"".join(read_until_end(stdout, pid, deadline)) == b'{"result": {}}'
            monkeypatch.setattr(child_output, "MOST_LEFT_BEHIND", 100)
            pieces = read_until_end(stdout, pid, deadline)
            total = 0
            os.write(writer, b"x" * 60)
            for piece in pieces:
                total += len(piece)
                os.write(writer, b"x" * 60)
            assert total < 200
    finally:
        os.close(writer)
    assert time.monotonic() < deadline
