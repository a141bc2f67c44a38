"""What replicas log is read line by line, and the next version is one that must be loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from swap_answers import Known
from swap_service import Event, Timeline, event_of, forget_compiled, next_version, told_apart

from models.engine.backends.openvino_compiled import CompiledNetworks
from serve.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

FLIPPED = {
    "ts": "2026-01-02T03:04:05.250+00:00",
    "level": "info",
    "logger": "serve.telemetry",
    "message": "flipped",
    "model": "bench",
    "version": "2",
    "generation": 3,
}


def line(**changes: Any) -> bytes:
    """Return a log line."""
    return json.dumps(FLIPPED | changes, separators=(",", ":")).encode()


def test_the_lines_of_a_swap_are_read_and_others_passed_over() -> None:
    """Kind, moment, duration, generation and version; what is no event of a swap is none."""
    flipped = event_of("replica-1", line())
    assert flipped == Event("replica-1", 1767323045.25, "flipped", 0.0, 3, "2")
    held = event_of("replica-1", line(message="held", ms=12.5))
    assert held is not None
    assert (held.kind, held.ms) == ("held", 12.5)
    for other in (line(message="started"), line(logger="steelyard.audit"), b"", b'"flipped"', line(ts="soon")):
        assert event_of("replica-1", other) is None


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    """Nothing is lost, nothing is read twice, and new logs are found."""
    timeline = Timeline(tmp_path)
    timeline.read()
    assert (timeline.generation, timeline.version) == (0, "")
    log = tmp_path / "logs" / "now" / "replica-7.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(line() + b"\n" + line(generation=4)[:20])
    timeline.read()
    timeline.read()
    assert len(timeline.events) == 1
    log.write_bytes(line() + b"\n" + line(generation=4, version="5") + b"\n")
    timeline.read()
    assert (timeline.generation, timeline.version) == (4, "5")
    assert timeline.flips(3) == {"replica-7": 1767323045.25}


def test_every_promotion_loads_and_changes_the_answers() -> None:
    """Of four versions of two networks, the next one is neither resident nor like what serves, rollbacks included."""

    def differ(one: str, two: str) -> bool:
        return int(one) % 2 != int(two) % 2

    versions = ["1", "2", "3", "4"]
    assert next_version(versions, "4", "3", differ) == "1"
    assert next_version(versions, "1", "4", differ) == "2"
    # After a rollback from 2 to 1 the version 2 is still resident.
    assert next_version(versions, "1", "2", differ) == "4"


@pytest.mark.parametrize("exact", [True, False])
def test_versions_are_told_apart_by_every_picture(exact: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """One picture that both answer alike would hide a wrong version."""
    box = {"name": "a", "class": 0, "confidence": 0.9, "box": {"x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0}}
    assert told_apart(Known("a", ([box],)), Known("b", ([],)), exact=exact)
    assert not told_apart(Known("a", ([box], [box])), Known("b", ([], [box])), exact=exact)


def test_compiled_networks_are_forgotten_where_the_service_keeps_them(tmp_path: Path) -> None:
    """Those and nothing else; a service that has compiled none has none to forget."""
    forget_compiled(tmp_path)
    networks = CompiledNetworks(Settings(home=tmp_path).cache / "engines")
    assert networks.write("a", b"network")
    (networks.folder / "lock").touch()
    forget_compiled(tmp_path)
    assert [path.name for path in networks.folder.iterdir()] == ["lock"]
