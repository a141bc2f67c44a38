"""The benchmark's options, notes and files; the measurements themselves need a machine of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import bench
import bench_options
import measures
import peer_servers
import pytest
import raw
from machine import cpu_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(name="inputs")
def _inputs(tmp_path: Path) -> list[str]:
    """Return the options that name weights and pictures."""
    (tmp_path / "a.pt").write_bytes(b"weights")
    (tmp_path / "a.jpg").write_bytes(b"picture")
    return ["--weights", str(tmp_path / "a.pt"), "--images", str(tmp_path / "a.jpg"), "--cache", str(tmp_path)]


def test_quick_is_shorter_and_explicit_options_win(inputs: list[str]) -> None:
    """--quick only changes defaults."""
    full, quick = bench_options.parse(inputs), bench_options.parse([*inputs, "--quick", "--rounds", "2"])

    assert (full.rounds, full.steady_requests, full.clients) == (3, 2400, [1, 2, 4, 8, 16])
    assert (quick.rounds, quick.steady_requests, quick.clients) == (2, 600, [8])
    lengths = ("seconds", "warmup", "engine_warmup", "lone_warmup", "idle", "steady_requests", "flood_seconds")
    assert all(getattr(quick, name) < getattr(full, name) for name in lengths)


@pytest.mark.parametrize(
    "arguments",
    [["--peers", "apache"], ["--clients", "0"], ["--rounds", "0"], ["--seconds", "0"], ["--weights", "none.pt"]],
)
def test_senseless_options_are_refused(inputs: list[str], arguments: list[str]) -> None:
    """What cannot be measured is refused before anything starts."""
    with pytest.raises(SystemExit) as caught:
        bench_options.parse([*inputs, *arguments])

    assert caught.value.code == 2


def test_peers_that_are_not_built_are_left_out_and_named(inputs: list[str]) -> None:
    """A plain run installs nothing, and the report says what is missing and how to get it."""
    chosen, notes = bench.chosen_peers(bench_options.parse(inputs), lambda _: None)

    assert chosen == []
    assert [note.split(":")[0] for note in notes] == ["not compared with fastapi", "not compared with pytriton"]
    assert "--peers pytriton" in notes[1]


def test_every_peer_has_its_files() -> None:
    """A program, pinned requirements, and a framing that exists."""
    for peer in peer_servers.PEERS.values():
        assert (peer_servers.FOLDER / peer.script).is_file()
        if peer.environment is not None:
            lines = peer_servers._requirements(peer.environment).read_text().split()
            assert all("==" in line for line in lines)


def test_other_requirements_make_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale environment is never taken for a new one."""
    monkeypatch.setattr(peer_servers, "FOLDER", tmp_path)
    (tmp_path / "requirements-x.txt").write_text("a==1\n")
    first = peer_servers._environment("x", tmp_path)
    (tmp_path / "requirements-x.txt").write_text("a==2\n")

    assert first != peer_servers._environment("x", tmp_path)


def test_a_result_is_written_twice(tmp_path: Path, make_result: Callable[..., dict[str, Any]]) -> None:
    """JSON for machines, Markdown for people, under date and name."""
    data, text = bench.write(make_result(), "try", tmp_path / "results")

    assert (data.name, text.name) == ("2026-01-02-try.json", "2026-01-02-try.md")
    assert json.loads(data.read_text())["what"] == "Everything."
    assert text.read_text().startswith("## 2026-01-02 03:04 UTC, commit abc")


def test_a_measurement_without_result_says_what_it_wrote(tmp_path: Path) -> None:
    """The end of the script's own words reaches whoever waits."""
    with pytest.raises(measures.MeasureError, match="does not exist"):
        measures._script("raw.py", ["--weights", str(tmp_path / "none.pt"), "--json"], 5.0)


def test_the_processor_is_named_with_what_matters() -> None:
    """bf16 makes or breaks a comparison."""
    text = "processor : 0\nmodel name : Some CPU 9\nflags : fpu avx2 avx512_bf16\nprocessor : 1\nmodel name : other\n"

    assert cpu_model(text) == "Some CPU 9 (avx2, avx512_bf16)"
    assert cpu_model("") != ""


def test_the_usual_way_of_the_raw_engine_comes_first() -> None:
    """--best tries it among others, each once."""
    tried = raw.ways(2, best=True)

    assert tried[:1] == raw.ways(2, best=False)
    assert len(tried) == len(set(tried)) > 1


class FakeServer:
    """Stands for a server without processes."""

    name = "fake"

    def processes(self) -> list[Any]:
        """Return none."""
        return []


def test_cpu_is_counted_an_answered_image() -> None:
    """Nothing answered divides by one and not by zero."""
    server: Any = FakeServer()
    report, took = measures.with_cpu(server, lambda: {"answered": 0})

    assert report == {"answered": 0}
    assert took["cpu_ms"] == 0.0
