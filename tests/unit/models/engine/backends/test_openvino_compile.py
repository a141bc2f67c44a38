"""A process of its own compiles for all replicas; whatever becomes of it, a release loads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from models.engine.backends import openvino as backend_module
from models.engine.backends import openvino_compile as module
from models.engine.backends.backend import Ahead, Plan
from models.engine.backends.openvino import OpenVinoBackend
from models.engine.backends.openvino_compile import compile_apart
from models.engine.backends.openvino_compiled import SUFFIX, CompiledNetworks
from models.engine.backends.openvino_network import Network, Variant, runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release

pytest.importorskip("openvino")

SHAPE = (64, 96)
OTHER = (96, 64)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, *SHAPE, 3), np.uint8)
PLAN = Plan(3, 1, alone=True, decodes=True)
LIMIT_S = 60.0
SLEEPER = "import time; time.sleep(600)"
STARTER = """
import os, subprocess, sys
arguments = [sys.executable, "-P", "-m", *sys.argv[1:], str(os.getpid())]
child = subprocess.Popen(arguments, stdin=subprocess.PIPE)
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
        session = backend.load(release, PLAN, [Ahead(SHAPE), Ahead(SHAPE, alone=True), Ahead(SHAPE)])
        for alone, copy in ((False, 0), (False, 1), (True, 0)):
            assert session.warm(SHAPE, alone=alone, copy=copy)
        for lane, alone in ((0, False), (0, True)):
            assert np.array_equal(session.infer(IMAGE, lane, alone=alone), expected)
    assert compiling == []
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
    backend.load(release, None, []).close()
    compiling.clear()
    backend.load(release).close()
    assert compiling == []


def test_without_a_folder_every_process_compiles(
    release: Release, compiling: list[Variant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process is started."""
    monkeypatch.setattr(backend_module, "compile_apart", lambda *_, **__: pytest.fail("started"))
    OpenVinoBackend(threads=1, precision="auto").load(release, None, [Ahead(SHAPE)]).close()
    assert compiling == [Variant(None, 1)]


@pytest.mark.parametrize("fault", ["fails", "hangs", "cannot be started"])
def test_a_process_that_does_not_compile_costs_time_only(
    fault: str,
    tmp_path: Path,
    release: Release,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The replica compiles then, the log says why, and no process stays behind."""
    start = subprocess.Popen
    program = {"fails": [sys.executable, "-c", "raise SystemExit('broken')"], "hangs": [sys.executable, "-c", SLEEPER]}
    started: list[subprocess.Popen[bytes]] = []

    def stand_in(_arguments: object, **how: Any) -> subprocess.Popen[bytes]:
        started.append(start(program.get(fault, [tmp_path / "nothing"]), **how))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", stand_in)
    monkeypatch.setattr(backend_module, "COMPILE_DEADLINE_S", 2.0)
    session = OpenVinoBackend(threads=1, precision="auto", compiled=tmp_path).load(release, None, [Ahead(SHAPE)])
    assert session.infer(IMAGE, 0).shape == (1, 6, 6)
    said = {"fails": "broken", "hangs": "has not compiled", "cannot be started": "can be started"}
    assert said[fault] in caplog.text
    assert "this one compiles" in caplog.text
    assert all(child.returncode is not None for child in started)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["lock"])


def test_a_network_that_cannot_be_compiled_condemns_its_release_here(
    tmp_path: Path, make_release: Callable[..., Release]
) -> None:
    """What the process could not do the replica tries, and says what is wrong with the bytes."""
    release = make_release(files={"model.onnx": np.frombuffer(b"no network", np.uint8)})
    backend = OpenVinoBackend(threads=1, precision="fp32", compiled=tmp_path)
    with pytest.raises(backend_module.ReleaseRejectedError, match="cannot be read"):
        backend.load(release, None, [])
    assert files(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_replica_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """Nobody would read what it compiles; it waits here for a network that never comes."""
    request = '{"folder": "%s", "stride": 32, "precision": "f32", "variants": []}' % tmp_path  # noqa: UP031 - braces
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            STARTER,
            module.__name__,
            request,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[3])},
    ) as parent:
        try:
            assert parent.stdout is not None
            child = psutil.Process(int(parent.stdout.readline()))
            until(lambda: child.status() == psutil.STATUS_SLEEPING and child.cpu_times().user > 0.1)
        finally:
            parent.kill()
    psutil.wait_procs([child], timeout=LIMIT_S)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_whose_parent_is_gone_does_nothing(tmp_path: Path, tiny_network: Callable[..., np.ndarray]) -> None:
    """It may have ended before the process could say that it is to end with it."""
    request = '{"folder": "%s", "stride": 32, "precision": "f32", "variants": [[null, 1]]}' % tmp_path  # noqa: UP031
    subprocess.run(
        [sys.executable, "-P", "-m", module.__name__, request, "1" if os.getpid() != 1 else "2"],
        input=tiny_network().tobytes(),
        env=os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[3])},
        timeout=LIMIT_S,
        check=True,
    )
    assert files(tmp_path) == []


def test_the_process_gives_way_like_its_starter_and_stays_in_its_session(
    tmp_path: Path, tiny_network: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its priority would mean nothing."""
    start, seen = subprocess.Popen, []

    def look(arguments: list[str], **how: Any) -> subprocess.Popen[bytes]:
        child = start(arguments, **how)
        seen.append((os.getsid(child.pid), os.getpriority(os.PRIO_PROCESS, child.pid)))
        return child

    monkeypatch.setattr(module.subprocess, "Popen", look)
    compile_apart(tiny_network(), [Variant(None, 1)], tmp_path, stride=32, precision="f32", deadline_s=LIMIT_S)
    assert seen == [(os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0))]
    network = Network(runtime(), tiny_network(), stride=32, precision="f32")
    assert CompiledNetworks(tmp_path).has(network.key(Variant(None, 1)))


def test_a_disk_that_takes_no_more_ends_the_process(tmp_path: Path, tiny_network: Callable[..., np.ndarray]) -> None:
    """What cannot be kept need not be compiled."""
    compiled = CompiledNetworks(tmp_path, least_free=2**60)
    asked: list[Variant] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            if name == "compile_model":
                asked.append(Variant(None, 1))
            return getattr(runtime(), name)

    variants = [Variant(None, 1), Variant(SHAPE, 1)]
    module.compile_into(compiled, Counting(), tiny_network(), variants, stride=32, precision="f32")
    assert len(asked) == 1


def until(done: Callable[[], bool]) -> None:
    """Wait for something that another process does; fails after LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
