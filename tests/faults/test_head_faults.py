"""The head's GCS dies: replicas serve on without it, and no version comes back when it does."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from clients import Clients, regressions
from diaries import read
from diaries import regressions as turned_back
from processes import named
from running import running_ones, start, stop
from stories import HERE, moments, only, story_folder, told
from verdicts import failed

from models.weights.cache import CommittedStore
from serve.cluster import processes_of
from serve.home import remembered_folder

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service

FREEZE_S = 8.0
"""Longer than a hold's deadline and the limit of doubt together, 5.5 s by default."""


def test_a_gcs_that_restarts_with_its_store_goes_on_where_it_was() -> None:
    """Both replicas answer all the time; the next promotion commits under a later generation."""
    with story_folder() as folder:
        lines = told([sys.executable, str(HERE / "head_story.py"), str(folder), "kept"], within_s=240.0)
        diaries = read(folder / "home")
    at, generations = moments(lines), [line["generation"] for line in only(lines, "committed")]
    assert lines[-1]["what"] == "end", lines
    assert generations == sorted(set(generations))
    assert len(generations) == 2
    assert [line for mine in diaries.values() for line in mine if line.code] == []
    assert turned_back(diaries) == []
    for mine in diaries.values():
        assert {line.generation for line in mine if at["killed"] < line.sent < at["started"]} == {generations[0]}
        assert mine[-1].generation == generations[1]
    print(f"\nknown again {at['known again'] - at['started']:.1f} s after the GCS was back, "  # noqa: T201 - a figure
          f"promoted {at['committed'] - at['known again']:.1f} s later")  # fmt: skip


def test_a_gcs_that_restarts_without_its_store_takes_no_answer_away() -> None:
    """The new one knows nobody: both replicas answer with what was committed, never less, for as long as Ray lets them.

    Nothing can be committed there; a new cluster of the same home begins with the durable record.
    """
    with story_folder() as folder:
        lines = told([sys.executable, str(HERE / "head_story.py"), str(folder), "lost"], within_s=240.0)
        diaries = read(folder / "home")
        record = CommittedStore(folder / "home").load("m")
    at = moments(lines)
    (committed,) = {line["generation"] for line in only(lines, "committed")}
    for mine in diaries.values():
        during = [line for line in mine if at["killed"] < line.sent < at["started"]]
        assert during
        assert {(line.generation, line.code) for line in mine if line.sent > at["killed"]} == {(committed, "")}
    assert turned_back(diaries) == []
    ends = {name: mine[-1].answered - at["started"] for name, mine in diaries.items()}
    print(f"\nlast answers, seconds after the new GCS: {ends}; the story ended with {lines[-1]['what']}")  # noqa: T201
    # What a new cluster begins with.
    assert record is not None
    assert (record.version, record.generation) == ("2", committed)


def test_a_service_whose_gcs_dies_ends_in_a_line_and_starts_with_what_it_served(tmp_path: Path) -> None:
    """No process stays behind, and the next start serves the last commit under a later generation."""
    service = start(tmp_path / "home", tmp_path / "serve.log", STEELYARD_POLL_INTERVAL_S="0.5")
    try:
        assert service.cli("promote", "checkout", "2").returncode == 0
        before = service.rollout()
        folder = remembered_folder(service.home)
        assert folder is not None
        everything = processes_of(folder)
        (gcs,) = [each for each in named(service, "gcs_server") if "gcs_server" in each.name()]
        os.kill(gcs.pid, signal.SIGKILL)
        assert service.process.wait(timeout=30) != 0
        assert running_ones(everything) == []
        # Ray's client complains once a second until its process has ended, now and then after our own last line.
        lines = service.log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if "task_manager.cc" not in line]
        assert "Traceback" not in "\n".join(said)
        assert "Ray" in said[-1]
    finally:
        stop(service)
    again = start(tmp_path / "home", tmp_path / "again.log", STEELYARD_POLL_INTERVAL_S="0.5")
    try:
        metadata = again.detect()["metadata"]
        assert metadata["version"] == before["serving"] == "2"
        assert metadata["generation"] > before["generation"]
    finally:
        stop(again)


@pytest.mark.sample
def test_replicas_in_doubt_answer_503_until_the_ledger_is_back(service: Service) -> None:
    """Rule 10 over HTTP: COMMIT stands, nobody says so, and the GCS that holds it is frozen past the limit of doubt."""
    service.settle("1")
    generation = service.rollout()["generation"]
    actor = service.actor_pid()
    (gcs,) = [each for each in named(service, "gcs_server") if "gcs_server" in each.name()]
    # Replicas ask only after the GCS is frozen; the actor that would tell them dies with the decision on its lips.
    service.arm("replica.before_ask", "delay:2.0")
    service.arm("actor.after_commit", "exit")
    with Clients(service.url, service.tray, count=4) as load:
        load.wait_for(generation)
        service.promote("2")
        deadline = time.monotonic() + 30.0
        while service.actor_pid() == actor:
            assert time.monotonic() < deadline, "the actor was not killed"
            time.sleep(0.02)  # the service under test lives in real time
        os.kill(gcs.pid, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            time.sleep(FREEZE_S)
            refused = httpx.post(f"{service.url}/v1/detect", content=service.tray, timeout=10)
            ready = httpx.get(f"{service.url}/healthz/ready", timeout=10)
        finally:
            os.kill(gcs.pid, signal.SIGCONT)
            thawed = time.monotonic()
        load.wait_for(generation + 1)
    problem = json.loads(refused.content)
    assert (refused.status_code, problem["code"]) == (503, "unavailable")
    assert int(refused.headers["Retry-After"]) >= 1
    assert ready.status_code == 503
    service.settle("2")
    assert {each.status for each in failed(load.exchanges)} == {503}
    assert regressions(load.exchanges) == []
    during = [e for e in load.exchanges if frozen + 1.0 < e.answered < thawed]
    assert [e for e in during if e.status == 200 and e.version == "1"] == []
    first = min(e.answered for e in load.exchanges if e.status == 503) - frozen
    back = min(e.answered for e in load.exchanges if e.version == "2") - thawed
    print(f"\nrefused from {first:.1f} s after the freeze, version 2 answered {back:.2f} s after the thaw")  # noqa: T201
