"""Run as a program on the host ``head``: hosts of a Ray cluster lose each other while a version is promoted.

``python partition_story.py SCENARIO``; reads one JSON object: folder, addresses by host, and by the hosts ``near`` and
``far`` the commands that run something there, pull its cable and plug it in again. The scenarios are the functions of
``SCENARIOS``. Prints one JSON object a line: what happened, and when in monotonic seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve.settings import Settings

HERE: Final = Path(__file__).parent
FAR: Final = "far"
HOLD_S: Final = 3.0
IN_DOUBT_S: Final = 1.0
BRIEF_S: Final = 4.0
DOUBTFUL_S: Final = 7.0
LONG_S: Final = 12.0
AFTERMATH_S: Final = 45.0
ISOLATION_S: Final = 3.0
ALONE_S: Final = 8.0
PATIENT: Final = {"period": 1000, "timeout": 5000, "threshold": 20}
"""Milliseconds between two health checks of a node and until one has failed, and failures until it counts as dead."""
IMPATIENT: Final = {"period": 500, "timeout": 1000, "threshold": 4}


def say(what: str, **more: object) -> None:
    """Print one line at once."""
    print(json.dumps({"what": what, "at": time.monotonic()} | more), flush=True)  # noqa: T201 - this program's answer


@dataclass
class World:
    """The cluster. settings: of its service. nodes: processes of the other hosts' nodes. replicas: handles of all."""

    task: dict[str, Any]
    settings: Settings
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)
    replicas: list[Any] = field(default_factory=list)

    def pull(self) -> None:
        """Cut ``far`` off."""
        subprocess.run(self.task["pull"], check=True, timeout=10)
        say("pulled")

    def plug(self) -> None:
        """Join it again."""
        subprocess.run(self.task["plug"], check=True, timeout=10)
        say("plugged")

    def ask(self, call: Callable[[Any], Any]) -> Any:
        """Ask the rollout actor."""
        import ray_fleet  # noqa: PLC0415 - after the environment stands

        return ray_fleet.call(self.settings, call)

    def promote(self, version: str) -> None:
        """Promote a version; an actor that has just died is asked once more."""
        import ray_fleet  # noqa: PLC0415 - likewise

        self.ask(lambda fleet: fleet.promote(ray_fleet.MODEL, version))
        say("promoted")

    def until(self, true: Callable[[dict[str, Any]], bool], within_s: float = 60.0) -> dict[str, Any]:
        """Return the status once ``true`` of it."""
        import ray_fleet  # noqa: PLC0415 - likewise

        status: dict[str, Any] = ray_fleet.until(self.settings, true, within_s=within_s)
        return status

    def committed(self, version: str, replicas: int) -> None:
        """Wait until so many replicas, all there are, serve ``version``."""
        import ray_fleet  # noqa: PLC0415 - likewise

        status = self.until(ray_fleet.all_on(version, replicas), within_s=90.0)
        say("committed", generation=status["generation"], replicas=replicas)


def brief(world: World) -> None:
    """A cable is out for some seconds while a version is promoted: nobody dies, all commit when it is back."""
    world.pull()
    world.promote("2")
    time.sleep(BRIEF_S)
    say("serving", version=world.until(lambda _: True)["serving"])
    world.plug()
    world.committed("2", 3)


def alone(world: World) -> None:
    """The same for longer than strict mode lets a replica answer that hears nothing; still nobody counts as dead."""
    world.pull()
    world.promote("2")
    time.sleep(ALONE_S)
    say("serving", version=world.until(lambda _: True)["serving"])
    world.plug()
    world.committed("2", 3)


def doubt(world: World) -> None:
    """A cable is pulled while all hold: the decision falls without the replica behind it."""
    world.ask(lambda fleet: fleet.arm("actor.after_hold", f"delay:{0.6 * HOLD_S}"))
    world.promote("2")
    world.until(lambda status: status["state"] == "holding")
    say("holding")
    time.sleep(0.2)
    world.pull()
    time.sleep(DOUBTFUL_S)
    world.plug()
    world.committed("2", 3)


def lost(world: World) -> None:
    """A cable stays out until the node behind it counts as dead and the others have committed; then it is back."""
    world.pull()
    world.promote("2")
    world.committed("2", 2)
    time.sleep(LONG_S)
    world.plug()
    time.sleep(AFTERMATH_S)
    say("status", replicas=world.until(lambda _: True)["replicas"])


SCENARIOS: Final = {
    "brief": (brief, PATIENT, "head", None),
    "doubt": (doubt, PATIENT, "head", None),
    "lost": (lost, IMPATIENT, "head", None),
    "lost-with-the-actor": (lost, IMPATIENT, FAR, None),
    "alone-strict": (alone, PATIENT, "head", ISOLATION_S),
    "lost-strict": (lost, IMPATIENT, "head", ISOLATION_S),
    "lost-with-the-actor-strict": (lost, IMPATIENT, FAR, ISOLATION_S),
}
"""What happens, how patient Ray is, on which host the rollout actor begins, and strict mode's limit (seconds)."""


def main() -> None:
    """Tell a story."""
    play, patience, home, isolation_s = SCENARIOS[sys.argv[1]]
    task = json.loads(sys.stdin.readline())
    folder, addresses = Path(task["folder"]), task["addresses"]
    os.environ |= {
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": str(patience["period"]),
        "RAY_health_check_timeout_ms": str(patience["timeout"]),
        "RAY_health_check_failure_threshold": str(patience["threshold"]),
    }
    # What Ray reads from the environment must stand there before it is imported.
    import ray  # noqa: PLC0415 - likewise
    from diaries import start_witness  # noqa: PLC0415 - likewise
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - likewise
    from ray_fleet import all_on, fleet_settings, stocked_registry  # noqa: PLC0415 - likewise
    from ray_nodes import Nodes  # noqa: PLC0415 - likewise

    from serve import rollout  # noqa: PLC0415 - likewise

    settings = fleet_settings(folder / "home").model_copy(
        update={"hold_deadline_s": HOLD_S, "in_doubt_limit_s": IN_DOUBT_S, "strict_isolation_s": isolation_s}
    )
    cluster = Nodes(folder / "n", addresses["head"])
    world = World(task, settings)
    for name in ("near", FAR):
        program = [sys.executable, str(HERE / "node_program.py"), cluster.cluster.address, addresses[name], name]
        node = subprocess.Popen([*task["on"][name], *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert node.stdout is not None
        assert node.stdout.readline() == "ready\n"
        world.nodes.append(node)
    stocked_registry(settings, folder)
    by_name = {name: each["NodeID"] for each in ray.nodes() for name in each["Resources"] if name in addresses}
    actor = ray.remote(rollout.RolloutActor).options(
        name=rollout.actor_name(),
        namespace=rollout.NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        max_concurrency=rollout.MOST_CALLS,
        # The head is forced, for it is never lost; from the other host it must be able to go elsewhere.
        **(
            {"resources": {home: 1}}
            if home == "head"
            else {"scheduling_strategy": NodeAffinitySchedulingStrategy(by_name[home], soft=True)}
        ),
    )
    ray.get(actor.remote(settings, rollout.DEPLOYMENT).ping.remote(), timeout=60)
    # Ray ends an actor whose handle nobody has.
    world.replicas = [start_witness(settings, name, resources={name: 1}) for name in addresses]
    world.until(all_on("1", 3), within_s=120.0)
    say("ready", generation=world.until(lambda _: True)["generation"])
    time.sleep(1.0)
    play(world)
    time.sleep(1.0)
    say("end")
    sys.stdout.flush()
    # Whatever still runs on the hosts is ended with them.
    os._exit(0)


if __name__ == "__main__":
    main()
