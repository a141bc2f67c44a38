"""A process of its own compiles for all replicas; whatever becomes of it, a release loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from models.engine.backends import openvino as backend_module
from models.engine.backends import openvino_compile as module
from models.engine.backends.backend import Ahead, Beside, Plan
from models.engine.backends.openvino import OpenVinoBackend
from models.engine.backends.openvino_compile import compile_apart
from models.engine.backends.openvino_compiled import LEAST_S, SUFFIX, CompiledNetworks
from models.engine.backends.openvino_network import Network, Variant, runtime
from models.engine.priority import LOAD_NICENESS, give_way

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release

pytest.importorskip("openvino")

SHAPE = (64, 96)
OTHER = (96, 64)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, *SHAPE, 3), np.uint8)
PLAN = Plan(3, 1, alone=True, decodes=True)
LIMIT_S = 60.0
VARIANTS = [Variant(None, 1), Variant(SHAPE, 1)]
SLEEPER = "import time; time.sleep(600)"
STARTER = """
import os, subprocess, sys
arguments = [sys.executable, "-P", "-m", *sys.argv[2:], str(os.getpid())]
child = subprocess.Popen(arguments, stdin=int(sys.argv[1]))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def release(make_release: Callable[..., Release], tiny_network: Callable[..., np.ndarray]) -> Release:
    """Return a release of the tiny network."""
    return make_release(files={"model.onnx": tiny_network(bias=0.3)})


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[Variant]:
    """Return what this process compiles itself."""
    here: list[Variant] = []
    reading = Network._found

    def found(network: Network, variant: Variant) -> Any:
        known = reading(network, variant)
        if known is None:
            here.append(variant)
        return known

    monkeypatch.setattr(Network, "_found", found)
    return here


def beside(*ahead: Ahead) -> Beside:
    """Return what a load beside answers is told that nobody abandons."""
    return Beside(ahead, threading.Event())


def files(folder: Path) -> list[Path]:
    """Return the compiled networks there."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_a_load_beside_answers_compiles_nothing_itself(
    tmp_path: Path, release: Release, compiling: list[Variant]
) -> None:
    """One process compiles all that is known ahead; this one and the next read it, and answer to the last bit alike."""
    plain = OpenVinoBackend(threads=2, precision="auto").load(release, PLAN)
    expected = plain.infer(IMAGE, 0)
    compiling.clear()
    for _ in range(2):
        backend = OpenVinoBackend(threads=2, precision="auto", compiled=tmp_path / "engines")
        session = backend.load(release, PLAN, beside(Ahead(SHAPE), Ahead(SHAPE, alone=True), Ahead(SHAPE)))
        for alone, copy in ((False, 0), (False, 1), (True, 0)):
            assert session.warm(SHAPE, alone=alone, copy=copy)
        for lane, alone in ((0, False), (0, True)):
            assert np.array_equal(session.infer(IMAGE, lane, alone=alone), expected)
    assert compiling == []
    assert session.shape_cost(SHAPE) - plain.shape_cost(SHAPE) == release.files["model.onnx"].nbytes
    assert len(files(tmp_path / "engines")) == 3
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "engines", *files(tmp_path / "engines"))} == {0}
    assert session.warm(OTHER)
    assert compiling == [Variant(OTHER, 1)]


def test_a_first_load_compiles_itself_unless_it_finds_what_it_wants(
    tmp_path: Path, release: Release, compiling: list[Variant]
) -> None:
    """It has nobody to spare, and no process to wait for; after a restart it reads what was compiled before."""
    backend = OpenVinoBackend(threads=1, precision="auto", compiled=tmp_path)
    backend.load(release).close()
    assert (compiling, files(tmp_path)) == ([Variant(None, 1)], [])
    backend.load(release, None, beside()).close()
    compiling.clear()
    backend.load(release).close()
    assert compiling == []


def test_without_a_folder_every_process_compiles(
    release: Release, compiling: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process is started."""
    monkeypatch.setattr(module.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    OpenVinoBackend(threads=1, precision="auto").load(release, None, beside(Ahead(SHAPE))).close()
    assert compiling == [Variant(None, 1)]


@pytest.mark.parametrize("fault", ["fails", "hangs", "cannot be started", "is abandoned"])
def test_a_process_that_does_not_compile_costs_time_only(
    fault: str,
    tmp_path: Path,
    release: Release,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The replica compiles then, the log says why, and no process stays behind."""
    start = subprocess.Popen
    sleeper = [sys.executable, "-c", SLEEPER]
    program = {"fails": [sys.executable, "-c", "raise SystemExit('broken')"], "hangs": sleeper, "is abandoned": sleeper}
    started: list[subprocess.Popen[bytes]] = []

    def stand_in(_arguments: object, **how: Any) -> subprocess.Popen[bytes]:
        started.append(start(program.get(fault, [tmp_path / "nothing"]), **how))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", stand_in)
    monkeypatch.setattr(module, "COMPILE_DEADLINE_S", LEAST_S + 2.0)
    abandoned = threading.Event()
    if fault == "is abandoned":
        threading.Timer(0.3, abandoned.set).start()
        monkeypatch.setattr(module, "COMPILE_DEADLINE_S", 600.0)
    backend = OpenVinoBackend(threads=1, precision="auto", compiled=tmp_path)
    session = backend.load(release, None, Beside((Ahead(SHAPE),), abandoned))
    assert session.infer(IMAGE, 0).shape == (1, 6, 6)
    said = {"fails": "broken", "hangs": "has not compiled", "cannot be started": "no process", "is abandoned": ""}
    assert said[fault] in caplog.text
    assert ("this one compiles" in caplog.text) == (fault != "is abandoned")
    assert all(child.returncode is not None for child in started)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["lock"])


def test_a_network_that_cannot_be_compiled_condemns_its_release_here(
    tmp_path: Path, make_release: Callable[..., Release]
) -> None:
    """What the process could not do the replica tries, and says what is wrong with the bytes."""
    release = make_release(files={"model.onnx": np.frombuffer(b"no network", np.uint8)})
    backend = OpenVinoBackend(threads=1, precision="fp32", compiled=tmp_path)
    with pytest.raises(backend_module.ReleaseRejectedError, match="cannot be read"):
        backend.load(release, None, beside())
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_replica_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """Nobody would read what it compiles; it waits here for a network that never comes."""
    request = '{"folder": "%s", "stride": 32, "precision": "f32", "variants": []}' % tmp_path  # noqa: UP031 - braces
    network, never_written = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(network), module.__name__, request],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[network],
        env=module._environment(),
    ) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            until(lambda: Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000")
        finally:
            parent.kill()
    try:
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        os.close(network)
        os.close(never_written)


def test_a_process_whose_parent_is_gone_does_nothing(tmp_path: Path, tiny_network: Callable[..., np.ndarray]) -> None:
    """It may have ended before the process could say that it is to end with it."""
    request = '{"folder": "%s", "stride": 32, "precision": "f32", "variants": [[null, 1]]}' % tmp_path  # noqa: UP031
    subprocess.run(
        [sys.executable, "-P", "-m", module.__name__, request, "1" if os.getpid() != 1 else "2"],
        input=tiny_network().tobytes(),
        env=module._environment(),
        timeout=LIMIT_S,
        check=True,
    )
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_process_gives_way_like_its_starter(
    tmp_path: Path, tiny_network: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its session, else its priority would mean nothing; memory is taken from it first, and it knows no keys."""
    start, seen = subprocess.Popen, []

    def look(arguments: list[str], **how: Any) -> subprocess.Popen[bytes]:
        child = start(arguments, **how)
        score = Path(f"/proc/{child.pid}/oom_score_adj")
        until(lambda: child.poll() is not None or score.read_text().strip() == "1000")
        seen.append((os.getsid(child.pid), os.getpriority(os.PRIO_PROCESS, child.pid), child.poll()))
        assert b"secret" not in Path(f"/proc/{child.pid}/environ").read_bytes()
        return child

    def load() -> None:
        give_way(LOAD_NICENESS)
        compile_apart(network, CompiledNetworks(tmp_path), VARIANTS, threading.Event(), deadline_s=LIMIT_S)

    monkeypatch.setenv("STEELYARD_WEBHOOK_SECRET", "secret")
    monkeypatch.setattr(module.subprocess, "Popen", look)
    network = Network(runtime(), tiny_network(), stride=32, precision="f32")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(load).result(LIMIT_S)
    assert seen == [(os.getsid(0), LOAD_NICENESS, None)]
    assert all(CompiledNetworks(tmp_path).has(network.key(variant)) for variant in VARIANTS)


def test_a_disk_that_takes_no_more_ends_the_process(
    tmp_path: Path, tiny_network: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept need not be compiled, and whoever started it hears of it."""
    compiled = CompiledNetworks(tmp_path, least_free=2**60)
    asked: list[Variant] = []
    request = Network.request

    def count(network: Network, variant: Variant) -> Any:
        asked.append(variant)
        return request(network, variant)

    monkeypatch.setattr(Network, "request", count)
    assert not module.compile_into(compiled, runtime(), tiny_network(), VARIANTS, stride=32, precision="f32")
    assert asked == VARIANTS[:1]
    line = json.dumps({"folder": str(tmp_path), "stride": 32, "precision": "f32", "variants": VARIANTS})
    code = f"from {module.__name__} import *; import sys; compile_into.__globals__['CompiledNetworks'].write = "
    code += "lambda *_: False; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, line, str(os.getpid())],
        input=tiny_network().tobytes(),
        env=module._environment(),
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == module.NOT_KEPT


def until(done: Callable[[], bool]) -> None:
    """Wait for something that another process does; fails after LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
