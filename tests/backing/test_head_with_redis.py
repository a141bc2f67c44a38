"""The head of a cluster is lost with Redis behind it, and Redis itself: replicas answer on, a new head goes on.

What KubeRay does of it is done by a program: a host for each pod, each restarted when its program ends.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import releases
from clients import regressions
from hosts import Hosts, RefusedError
from open_load import Sent, failed
from stories import moments, only, story_folder, told
from swap_service import digest_of

from models import demo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(600)
"""Seconds, with the conversion of two releases before the first test."""
HERE = Path(__file__).parent
NAMES = ("client", "redis", "head", "replicas")
FEWEST = 200
"""Requests that a story sends at least: those of the outage, and what it waits for before and after."""


@pytest.fixture(scope="module")
def networks() -> list[list[str]]:
    """Return the folders of two releases and their digests; converted once, then kept for later runs."""
    folders = [releases.prepare(demo.weights_path(number)) for number in (1, 2)]
    return [[str(folder), digest_of(folder)] for folder in folders]


@pytest.fixture
def play(networks: list[list[str]]) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Return a function that plays a scenario of cluster_story.py and returns what it told."""
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (Debian: redis-server)")
    try:
        with Hosts(NAMES) as hosts, story_folder() as folder:
            # Redis runs as nobody and looks for its folder in there.
            folder.chmod(0o755)

            def run(scenario: str) -> list[dict[str, Any]]:
                task = {
                    "folder": str(folder),
                    "addresses": hosts.addresses,
                    "on": {name: hosts.on(name) for name in NAMES},
                    "pids": {name: hosts.pids(name) for name in NAMES},
                    "releases": networks,
                    "key": secrets.token_hex(16),
                }
                command = hosts.on("client", sys.executable, str(HERE / "cluster_story.py"), scenario)
                lines = told(command, given=task, within_s=400.0)
                if lines[-1]["what"] != "end":
                    logs = [
                        f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in folder.glob("*.log")
                    ]
                    told_so_far = [line for line in lines[:-1] if line["what"] != "requests"]
                    pytest.fail("\n".join([*logs, *map(str, told_so_far), str(lines[-1].get("errors"))]))
                return lines

            yield run
    except RefusedError as refused:
        pytest.skip(str(refused))


def _judge(lines: list[dict[str, Any]], what: str) -> None:
    """Demand that no request failed, that no version came back, and that both promotions after the outage were done."""
    (requests,) = only(lines, "requests")
    sent = [Sent(**each) for each in requests["sent"]]
    assert len(sent) >= FEWEST
    assert failed(sent) == []
    assert regressions(sent) == []
    assert [line["version"] for line in only(lines, "converged")] == ["2", "1"]
    # The replicas are the same all the time; a machine that is busy may start a node in vain before.
    assert lines[-1]["starts"]["replicas"] == only(lines, "ready")[0]["starts"]["replicas"]
    generations = [only(lines, "ready")[0]["generation"], *(line["generation"] for line in only(lines, "converged"))]
    assert generations == sorted(set(generations))
    (meanwhile,) = only(lines, "asked meanwhile")
    # Refused, or taken and done when the ledger is back: the actor that decides may live on either host.
    assert meanwhile["status"] in {200, 503}, meanwhile
    assert {each.version for each in sent if meanwhile["at"] <= each.sent < moments(lines)["started"]} == {"1"}
    at, first = moments(lines), only(lines, "converged")[0]["at"]
    print(  # noqa: T201 - figures
        f"\n{what}: 0 failed of {len(sent)}; away for {at['started'] - at['killed']:.1f} s; a promotion meanwhile was "
        f"answered {meanwhile['status']} after {meanwhile['took']:.1f} s; the next one served everywhere "
        f"{first - at['started']:.1f} s after the return"
    )


def test_a_head_that_is_lost_comes_back_from_redis(play: Callable[[str], list[dict[str, Any]]]) -> None:
    """Replicas answer every request without a head; the new one finds in Redis what the old one knew, and promotes."""
    lines = play("head")
    _judge(lines, "head lost")
    assert lines[-1]["starts"]["head"] > only(lines, "ready")[0]["starts"]["head"]


def test_redis_that_is_lost_comes_back_from_its_file(play: Callable[[str], list[dict[str, Any]]]) -> None:
    """Replicas answer every request without Redis; the head goes on as soon as it is back."""
    lines = play("redis")
    _judge(lines, "Redis lost")
