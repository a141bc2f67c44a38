"""Run as a program on the host ``client``: what a cluster's pods do, in network namespaces instead of pods.

``python cluster_story.py SCENARIO``; reads one JSON object: folder; release folders of versions 1 and 2; addresses by
host; ``on``, the commands that run something on each host, and ``pids``, those that list what runs there. Redis, a head
and a node of replicas each have a host of their own, the service is deployed by its HTTP interface as the KubeRay
operator does it, and a host whose program ends is started anew as the kubelet does it. Prints one JSON object a line:
what happened, and when in monotonic seconds; "requests" in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODEL: Final = "bench"
RATE: Final = 20.0
REPLICAS: Final = 2
HTTP: Final = 8000
REDIS: Final = 6379
GCS: Final = 6380
DASHBOARD: Final = 8265
OUTAGE_S: Final = 8.0
READY_S: Final = 120.0
CONVERGED_S: Final = 120.0
LOAD_S: Final = 600.0
LOOK_S: Final = 0.25
HERE: Final = Path(__file__).parent
RAY: Final = Path(sys.executable).with_name("ray")


def say(what: str, **more: object) -> None:
    """Print one line at once."""
    print(json.dumps({"what": what, "at": time.monotonic()} | more), flush=True)  # noqa: T201 - this program's answer


class Pod:
    """One host and the program that it runs, started anew whenever it has ended, until it is told to stay away."""

    def __init__(self, world: World, name: str, command: Sequence[str], user: str | None = None) -> None:
        """Start it. user: who runs it, None for root."""
        self._world, self._name = world, name
        prefix = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user else []
        self._command = [*world.task["on"][name], *prefix, *command]
        self.wanted = True
        self.starts = 0
        threading.Thread(target=self._keep, daemon=True).start()

    def kill(self) -> None:
        """Kill every process of the host at once, as when a machine is lost, and start none."""
        self.wanted = False
        while inside := self.inside():
            for process in inside:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)  # they end in real time

    def inside(self) -> list[int]:
        """Return the processes of the host."""
        asked = subprocess.run(
            self._world.task["pids"][self._name], check=True, capture_output=True, text=True, timeout=10
        )
        return [int(line) for line in asked.stdout.split()]

    def _keep(self) -> None:
        while True:
            if self.wanted:
                self.starts += 1
                # Its own, and empty: a pod finds no trace there of those before it and beside it.
                temporary = self._world.folder / f"{self._name}{self.starts}"
                temporary.mkdir()
                with (self._world.folder / f"{self._name}.log").open("ab") as log:
                    subprocess.run(
                        self._command,
                        env=os.environ | self._world.environment | {"RAY_TMPDIR": str(temporary)},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        check=False,
                    )
                if self.wanted:
                    # What its program leaves behind ends with a pod.
                    self.kill()
                    self.wanted = True
                say("ended", host=self._name)
            time.sleep(LOOK_S)


class World:
    """The cluster. task: what this program was given. environment: of every pod."""

    def __init__(self, task: dict[str, Any]) -> None:
        """Start the pods."""
        self.task = task
        self.folder = Path(task["folder"])
        self.addresses: dict[str, str] = task["addresses"]
        self.environment = self._environment()
        self.token = self.environment["RAY_AUTH_TOKEN"]
        self.url = f"http://{self.addresses['replicas']}:{HTTP}"
        # Each call over a connection of its own: an open one would keep an HAProxy alive that was replaced.
        self.http = httpx.Client(
            timeout=30,
            headers={"Authorization": f"Bearer {task['key']}"},
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        (self.folder / "redis").mkdir(mode=0o777)
        (self.folder / "redis").chmod(0o777)
        where = ["--bind", self.addresses["redis"], "--port", str(REDIS), "--dir", str(self.folder / "redis")]
        durable = [
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--requirepass",
            self.environment["REDIS_PASSWORD"],
        ]
        self.redis = Pod(self, "redis", ["redis-server", *where, *durable], user="nobody")
        self._wait(lambda: _listens(self.addresses["redis"], REDIS), "Redis")
        head = ["--head", f"--port={GCS}", "--num-cpus=0", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD}"]
        head.append(f"--redis-password={self.environment['REDIS_PASSWORD']}")
        self.head = Pod(self, "head", ["nice", "-n", "10", *self._ray("head", *head)])
        self._wait(lambda: _listens(self.addresses["head"], DASHBOARD), "the head")
        self.node = Pod(self, "replicas", self._ray("replicas", f"--address={self.gcs}", f"--num-cpus={REPLICAS}"))

    @property
    def gcs(self) -> str:
        """Return the address of the head's GCS."""
        return f"{self.addresses['head']}:{GCS}"

    def deploy(self) -> None:
        """Hand the application to Ray Serve by HTTP, as the operator does; return once the replicas are ready."""
        document = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "0.0.0.0", "port": HTTP, "request_timeout_s": 40},  # noqa: S104 - a pod's own
            "logging_config": {"encoding": "JSON", "enable_access_log": False},
            "applications": [{"name": "steelyard", "import_path": "serve.app:app", "route_prefix": "/"}],
        }
        url = f"http://{self.addresses['head']}:{DASHBOARD}/api/serve/applications/"
        headers = {"Authorization": f"Bearer {self.token}"}

        def accepted() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return self.http.put(url, json=document, headers=headers).is_success
            return False

        self._wait(accepted, "the deployment")
        self._wait(lambda: self.serves("1"), "the replicas")
        self._wait(self._routed, "HAProxy")

    def _routed(self) -> bool:
        """Return whether the replicas' host has one HAProxy, which sends requests to the replicas.

        The first one there sends them by way of the head, and goes when its last connection does.
        """
        programs = [psutil.Process(each).name() for each in self.node.inside() if psutil.pid_exists(each)]
        routes = [path.read_text() for path in (self.folder / "p").glob("*/haproxy.cfg")]
        return programs.count("haproxy") == 1 and all(each.count("server SERVE_REPLICA") == REPLICAS for each in routes)

    def serves(self, version: str) -> bool:
        """Return whether all replicas answer with ``version``."""
        state = self.rollout()
        there = [each["version"] for each in state.get("replicas", ())]
        return state.get("serving") == version and there == [version] * REPLICAS

    def rollout(self) -> dict[str, Any]:
        """Return the state of the rollout, empty where nobody knows it."""
        with contextlib.suppress(httpx.HTTPError):
            answer = self.http.get(f"{self.url}/v1/models/{MODEL}/rollout")
            if answer.is_success:
                state: dict[str, Any] = answer.json()
                return state
        return {}

    def promote(self, version: str) -> httpx.Response:
        """Ask for ``version``."""
        return self.http.post(f"{self.url}/v1/models/{MODEL}/promote", json={"version": version})

    def converge(self, version: str) -> None:
        """Ask for ``version`` until it is taken, and wait until all replicas serve it."""
        self._wait(lambda: self.promote(version).is_success, "a promotion", CONVERGED_S)
        say("promoted", version=version)
        self._wait(lambda: self.serves(version), "the new version", CONVERGED_S)
        say("converged", version=version, generation=self.rollout()["generation"])

    def starts(self) -> dict[str, int]:
        """Return how often each of Ray's hosts was started."""
        return {"head": self.head.starts, "replicas": self.node.starts}

    def nodes(self) -> None:
        """Say which of Ray's nodes there are, as the head knows them."""
        command = [*self.task["on"]["head"], str(RAY), "list", "nodes", "--format=json", f"--address={self.gcs}"]
        with contextlib.suppress(subprocess.SubprocessError, ValueError):
            told = subprocess.run(
                command, env=os.environ | self.environment, capture_output=True, text=True, timeout=30, check=True
            )
            say("nodes", nodes=[[each["node_ip"], each["state"]] for each in json.loads(told.stdout)])

    def _ray(self, name: str, *options: str) -> list[str]:
        address = f"--node-ip-address={self.addresses[name]}"
        memory = f"--object-store-memory={100 * 2**20}"
        return [str(RAY), "start", "--block", "--disable-usage-stats", address, memory, *options]

    def _environment(self) -> dict[str, str]:
        from serve.environment import serve_environment  # noqa: PLC0415 - imports what reads the environment
        from serve.ports import Ports  # noqa: PLC0415 - likewise
        from serve.settings import load_settings  # noqa: PLC0415 - likewise

        settings = load_settings(
            home=self.folder / "home",
            host="0.0.0.0",  # noqa: S104 - a pod's own
            models=(MODEL,),
            replicas=REPLICAS,
            cpus=1,
            backend="fake",
            poll_interval_s=0.5,
            latency_factor=100.0,
            trial_images=20,
            probation_s=0.0,
            anonymous_predict=True,
            admin_key=self.task["key"],
        )
        self.settings = settings
        (self.folder / "p").mkdir()
        return {
            **serve_environment(settings, self.folder / "p", Ports()),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # What the KubeRay operator adds where gcsFaultToleranceOptions are given.
            "RAY_REDIS_ADDRESS": f"{self.addresses['redis']}:{REDIS}",
            "REDIS_PASSWORD": secrets.token_hex(16),
            "RAY_external_storage_namespace": "steelyard-test",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        }

    def _wait(self, there: Callable[[], bool], what: str, within_s: float = READY_S) -> None:
        deadline = time.monotonic() + within_s
        while not there():
            if time.monotonic() > deadline:
                msg = f"{what} did not get there within {within_s:.0f} s"
                raise TimeoutError(msg)
            time.sleep(LOOK_S)  # Ray runs in real time


def head(world: World) -> None:
    """The head's machine is lost and comes back as another one at the same address."""
    world.head.kill()
    say("killed", host="head")
    _outage(world)
    world.head.wanted = True
    say("started", host="head")


def redis(world: World) -> None:
    """Redis is lost, which takes the head's GCS with it, and comes back with its file; heads start in vain."""
    world.redis.kill()
    say("killed", host="redis")
    _outage(world)
    world.redis.wanted = True
    say("started", host="redis")


SCENARIOS: Final = {"head": head, "redis": redis}


def _outage(world: World) -> None:
    """Ask for a promotion while nobody can decide, and let the outage last."""
    begun = time.monotonic()
    answer = world.promote("2")
    say("asked meanwhile", status=answer.status_code, body=answer.text[:500], took=time.monotonic() - begun)
    time.sleep(max(0.0, begun + OUTAGE_S - time.monotonic()))


def main() -> None:
    """Tell a story."""
    # Test folders are no packages.
    sys.path.append(str(HERE.parent / "faults"))
    from open_load import OpenLoad  # noqa: PLC0415 - found on the path that stands only now

    from models import demo  # noqa: PLC0415 - likewise

    play = SCENARIOS[sys.argv[1]]
    world = World(json.loads(sys.stdin.readline()))
    _stock(world)
    say("cluster")
    world.deploy()
    say("ready", generation=world.rollout()["generation"], starts=world.starts())
    load = OpenLoad(world.url, [demo.SAMPLE_TRAY.read_bytes()], rate=RATE, regulars=["till-1"], most_seconds=LOAD_S)
    try:
        with load:
            load.wait_for(20)
            play(world)
            world.converge("2")
            load.wait_for(40, within_s=READY_S)
            world.converge("1")
            load.wait_for(40, within_s=READY_S)
    finally:
        # Of a story that breaks off, too: they say when it went wrong.
        say("requests", sent=[asdict(each) for each in load.exchanges])
    world.nodes()
    say("end", starts=world.starts())
    sys.stdout.flush()
    # Whatever still runs on the hosts is ended with them.
    os._exit(0)


def _stock(world: World) -> None:
    from models.weights.mlflow_registry import MlflowRegistry  # noqa: PLC0415 - takes seconds, while pods start
    from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, SOURCE_TAG  # noqa: PLC0415 - likewise

    registry = MlflowRegistry(world.settings.tracking_uri)
    for folder, digest in world.task["releases"]:
        tags = {DIGEST_TAG: digest, SOURCE_TAG: digest, PROMOTABLE_TAG: "true"}
        registry.create_version(MODEL, Path(folder), tags=tags, metrics={})
    registry.promote(MODEL, "1", promotion="first", reason="test")


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


if __name__ == "__main__":
    main()
