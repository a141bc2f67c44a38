"""``steelyard serve``: from a home folder to a running service, and back to nothing."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import shutil
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import psutil

from models.weights.cache import CommittedStore, ReleaseCache
from models.weights.mlflow_registry import MlflowRegistry
from serve.access import Scope, issue
from serve.access_file import keys_demanded
from serve.access_start import check_start
from serve.announce import Announcer
from serve.cluster import PREFIX, ClusterError, LocalCluster
from serve.home import (
    ServiceRecord,
    new_log_folder,
    only_service,
    remember_folder,
    remembered_folder,
    remove_record,
    write_record,
)
from serve.ports import LOOPBACK, check_address
from serve.processes import end, processes_of
from serve.readiness import get_json, wait_until_ready
from serve.settings import available_cores
from serve.sizing import check_cores
from serve.stock import check_sources, stock
from serve.trust import check_trust, signer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from serve.settings import Settings

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
READY_MARGIN_S: Final = 60.0
"""Time beyond the preparation of its releases in which a new service must be ready (seconds)."""

START_ATTEMPTS: Final = 3
"""Failures of replicas to start after which the person who waits is told."""

WATCH_INTERVAL_S: Final = 0.5
LOCAL: Final = "local"
"""Id of the key by which commands on this home get in."""


def run(settings: Settings, sources: Mapping[str, str | None]) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP and return 0. Blocks; call it from the main thread.

    sources: model name -> weights file to register, promote and serve, or None for what the registry holds already.

    Raises SteelyardError, in one sentence, for whatever keeps the service from starting or from going on.
    """
    started = time.monotonic()
    announcer = Announcer(sys.stdout, sys.stderr)
    check_sources(sources)
    check_start(settings, time.time())
    check_cores(settings, available_cores())
    check_trust(settings)
    with only_service(settings.root), _stop_signals() as signals:
        clear_leftovers(settings.root)
        check_address(settings.host, settings.port)
        logs = new_log_folder(settings.root)
        with _streams_into(logs / "driver.log"):
            _serve(settings, sources, _Run(announcer, signals, logs, started))
    announcer.say("stopped")
    return 0


class _Run:
    """What the steps of one start share."""

    def __init__(self, announcer: Announcer, signals: _StopSignals, logs: Path, started: float) -> None:
        self.announcer = announcer
        self.signals = signals
        self.logs = logs
        self.started = started


def _serve(settings: Settings, sources: Mapping[str, str | None], run: _Run) -> None:
    cluster = LocalCluster(settings, log=run.logs / "ray.log")
    remember_folder(settings.root, cluster.folder)
    try:
        _bring_up(settings, sources, run, cluster)
        while True:
            time.sleep(WATCH_INTERVAL_S)
            cluster.check()
    except KeyboardInterrupt:
        run.announcer.clear()
        run.announcer.say("stopping")
    finally:
        run.signals.ignore()
        run.announcer.clear()
        remove_record(settings.root)
        cluster.stop()
        end(psutil.Process().children(recursive=True))


def _bring_up(settings: Settings, sources: Mapping[str, str | None], run: _Run, cluster: LocalCluster) -> None:
    say = run.announcer.say
    say("starting Ray")
    cluster.start()
    registry = MlflowRegistry(settings.tracking_uri)
    signing = signer(settings)
    stocking = _Background(
        lambda: stock(
            registry,
            sources,
            committed=CommittedStore(settings.root),
            cache=ReleaseCache(settings.cache),
            key=signing[1] if signing else None,
            say=say,
            progress=run.announcer.progress,
        )
    )

    from serve.app import build_application  # noqa: PLC0415 - imports Ray Serve, whose environment stands only now
    from serve.rollout import prepare  # noqa: PLC0415 - likewise

    cluster.connect()
    run.signals.install()  # Ray has put its own handler in place of ours
    cluster.check_gpus()
    stocking.raise_if_failed()
    edge = _Background(lambda: cluster.start_serve(logs=run.logs))
    stocking.wait(cluster.check)
    run.announcer.clear()

    say("starting replicas")
    prepare(settings)
    # For the commands of whoever may read this home, and so could make any key; Ray gets no more than its digest.
    local, key = issue(LOCAL, frozenset(Scope), time.time(), key_id=LOCAL)
    cluster.deploy(
        build_application(settings, cores=available_cores(), logs=run.logs, start_attempts=START_ATTEMPTS, local=local)
    )
    edge.wait(cluster.check)

    def check() -> None:
        cluster.check()
        failure = cluster.failure()
        if failure is not None:
            msg = f"the replicas do not start: {failure} (logs: {run.logs})"
            raise ClusterError(msg)

    url = address(settings)
    serving = wait_until_ready(
        url,
        settings.models,
        deadline_s=ready_deadline_s(settings),
        check=check,
        get=functools.partial(get_json, key=key),
    )
    write_record(settings.root, ServiceRecord(url, os.getpid(), key))
    guarded = keys_demanded(settings) or settings.access_path.exists()
    run.announcer.ready(
        url, serving, time.monotonic() - run.started, with_key=guarded and not settings.anonymous_predict
    )


def ready_deadline_s(settings: Settings) -> float:
    """Return how long a new service may take until it is ready (seconds): a replica prepares one model at a time."""
    return settings.prepare_timeout_s * len(settings.models) + READY_MARGIN_S


def address(settings: Settings) -> str:
    """Return the URL under which this machine reaches the service."""
    try:
        host = ipaddress.ip_address(settings.host)
    except ValueError:
        return f"http://{settings.host}:{settings.port}"
    if host.is_unspecified:
        return f"http://{LOOPBACK}:{settings.port}" if host.version == 4 else f"http://[::1]:{settings.port}"  # noqa: PLR2004
    return f"http://{host}:{settings.port}" if host.version == 4 else f"http://[{host}]:{settings.port}"  # noqa: PLR2004


def clear_leftovers(home: Path) -> None:
    """End what a service that died without warning has left behind. Call it only where no other can run."""
    remove_record(home)
    folder = remembered_folder(home)
    if folder is not None and folder.name.startswith(PREFIX) and not folder.is_symlink():
        end(processes_of(folder))
        shutil.rmtree(folder, ignore_errors=True)


class _Background:
    """Work on a daemon thread: it may outlive an interrupted start, whose end takes its child processes away."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="steelyard-start", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error

    def raise_if_failed(self) -> None:
        """Raise what the work raised, if it has."""
        if self._error is not None:
            raise self._error

    def wait(self, check: Callable[[], None]) -> None:
        """Return when the work is done; ``check`` is called meanwhile and may raise."""
        while self._thread.is_alive():
            self._thread.join(0.1)
            check()
        self.raise_if_failed()


class _StopSignals:
    """Turns the signals that end a service into KeyboardInterrupt, until they are ignored."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, _interrupt)

    def ignore(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:  # noqa: ARG001 - the shape of every signal handler
    raise KeyboardInterrupt


@contextlib.contextmanager
def _streams_into(path: Path) -> Iterator[None]:
    """Lead this process's streams into a file: Ray prints on them, between the lines for people."""
    with (
        path.open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


@contextlib.contextmanager
def _stop_signals() -> Iterator[_StopSignals]:
    signals = _StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        signals.restore()
