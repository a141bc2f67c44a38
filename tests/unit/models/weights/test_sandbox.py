"""The sandbox: what a child may say, how it ends, and what it cannot reach."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from models.errors import ConversionError
from models.weights import sandbox
from models.weights.child_output import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = """
from models.errors import ConversionError
def main(request, progress):
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a body of code as the sandboxed child's ``main``."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    original = sandbox._environment

    def environment(folder: Path, *, online: bool) -> dict[str, str]:
        found = original(folder, online=online)
        return found | {"PYTHONPATH": f"{found['PYTHONPATH']}:{tmp_path}"}

    monkeypatch.setattr(sandbox, "_environment", environment)

    def start(body: str, request: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        code = HEADER + textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / "sandboxed_child.py").write_text(code)
        return sandbox.run_sandboxed("sandboxed_child", request or {}, scratch, **options)

    return start


def test_the_result_and_the_progress_come_back(run: Callable[..., dict[str, Any]]) -> None:
    """What libraries print in between does not disturb the protocol."""
    seen: list[tuple[str, float]] = []
    result = run(
        """
        import os
        print("noise")
        os.system("echo louder")
        progress("half", 0.5)
        progress("beyond", 7)
        return {"sum": request["a"] + 1}
        """,
        {"a": 1},
        progress=lambda stage, done: seen.append((stage, done)),
    )
    assert result == {"sum": 2}
    assert seen == [("half", 0.5), ("beyond", 1.0)]


def test_a_refusal_comes_back_as_its_sentence(run: Callable[..., dict[str, Any]]) -> None:
    """The child's ConversionError is the parent's."""
    with pytest.raises(ConversionError, match=r"^no classes$"):
        run("raise ConversionError('no classes')")


def test_an_unexpected_error_shows_no_internals(run: Callable[..., dict[str, Any]]) -> None:
    """The traceback stays in the child's log."""
    with pytest.raises(ConversionError) as caught:
        run("raise ValueError('secret path /etc')")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConversionError, match="out of memory"):
        run("raise MemoryError")


def test_a_child_that_dies_is_explained(run: Callable[..., dict[str, Any]]) -> None:
    """A crash in a native library and the kernel's memory killer leave no message of their own."""
    with pytest.raises(ConversionError, match="ended without a result"):
        run("import os; os.abort()")
    with pytest.raises(ConversionError, match="want of memory"):
        run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_a_child_that_hangs_is_killed_with_all_it_started(run: Callable[..., dict[str, Any]]) -> None:
    """The deadline ends grandchildren too, even those that hold the pipe."""
    started = time.monotonic()
    with pytest.raises(ConversionError, match="stopped after 1 s"):
        run("import os; os.system('sleep 60')", deadline_s=1.0)
    assert time.monotonic() - started < 20


def test_a_grandchild_left_behind_is_killed(run: Callable[..., dict[str, Any]]) -> None:
    """Nothing that an untrusted file started outlives the conversion."""
    pid = run("import subprocess; return {'pid': subprocess.Popen(['sleep', '60'], stdout=-3).pid}")["pid"]
    status = Path(f"/proc/{pid}/status")
    # A kill takes effect a moment after it is sent, and nobody may be there to reap the dead.
    until = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until, "the grandchild still runs"
        time.sleep(0.01)


HOLD_THE_PIPE = """
import os, stat, subprocess, sys, time
pipe = []
for number in range(3, 64):
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            pipe.append(number)
    except OSError:
        pass
code = "import time; time.sleep(60)"
subprocess.Popen([sys.executable, "-c", code, request["marker"]], start_new_session=True, pass_fds=pipe)
"""
"""Code that leaves a process of another session behind, with the end of the pipe on which the child answers."""


def _processes_with(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_grandchild_of_another_session_does_not_hold_up_the_result(run: Callable[..., dict[str, Any]]) -> None:
    """It keeps the protocol's pipe open and its group is not the child's: the child's end is the end."""
    marker = f"steelyard-test-{uuid.uuid4().hex}"
    body = f"{HOLD_THE_PIPE}\nreturn {{'held': len(pipe)}}"
    started = time.monotonic()
    try:
        assert run(body, {"marker": marker}, deadline_s=40.0)["held"] >= 1
        assert time.monotonic() - started < 30
    finally:
        for process in _processes_with(marker):
            process.kill()


def test_a_grandchild_of_another_session_ends_with_the_deadline(run: Callable[..., dict[str, Any]]) -> None:
    """It has left the group that is killed and still must neither hold up the caller nor live on."""
    marker = f"steelyard-test-{uuid.uuid4().hex}"
    body = f"{HOLD_THE_PIPE}\ntime.sleep(60)"
    started = time.monotonic()
    try:
        with pytest.raises(ConversionError, match="stopped after 3 s"):
            run(body, {"marker": marker}, deadline_s=3.0)
        assert time.monotonic() - started < 25
        until = time.monotonic() + 10
        while _processes_with(marker):
            assert time.monotonic() < until, "the grandchild still runs"
            time.sleep(0.05)
    finally:
        for process in _processes_with(marker):
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_neither_side_can_be_looked_into_meanwhile(run: Callable[..., dict[str, Any]]) -> None:
    """The child shares the user with its parent, whose environment may hold keys; afterwards all is as before."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(3, 0, 0, 0, 0) == 1
    meanwhile: list[int] = []
    body = """
        import ctypes
        progress("look", 0.5)
        return {"child": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)}
    """
    found = run(body, progress=lambda *_: meanwhile.append(libc.prctl(3, 0, 0, 0, 0)))
    assert (found["child"], meanwhile) == (0, [0])
    assert libc.prctl(3, 0, 0, 0, 0) == 1


@pytest.mark.parametrize(("network", "warnings"), [("shared", 1), ("isolated", 0)])
def test_a_host_without_network_isolation_is_told_of(
    run: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture, network: str, warnings: int
) -> None:
    """Whoever registers a stranger's file must know that it was opened with the network in reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "Listener", _hearing(network))
        run("return {}")
    assert len([each for each in caplog.records if "no network namespace" in each.message]) == warnings


def _hearing(network: str) -> type[Listener]:
    class Told(Listener):
        """Has been told about the network already."""

        def __init__(self, progress: Callable[[str, float], None] | None) -> None:
            super().__init__(progress)
            self.network = network

    return Told


def test_the_parents_secrets_do_not_reach_the_child(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an allow-list of variables passes, and the restricting ones are set."""
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen = run("import os; return dict(os.environ)")
    assert "secret" not in seen.values()
    assert (seen["ULTRALYTICS_SAFE_LOAD"], seen["YOLO_AUTOINSTALL"], seen["YOLO_OFFLINE"]) == ("1", "false", "true")


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_the_child_has_no_network(run: Callable[..., dict[str, Any]]) -> None:
    """Not even this machine's own ports can be reached; with ``online`` they can, which proves the test."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"""
            import socket
            network = request["network"]
            try:
                socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
                return {{"reached": True, "network": network}}
            except OSError:
                return {{"reached": False, "network": network}}
        """
        closed = run(body)
        if closed["network"] != "isolated":
            pytest.skip("this host forbids network namespaces")
        assert closed["reached"] is False
        assert run(body, online=True)["reached"] is True


def test_limits_are_in_force(run: Callable[..., dict[str, Any]]) -> None:
    """No core dumps, no file larger than 2 GiB, no endless address space."""
    limits = run(
        """
        import resource
        kinds = ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_NOFILE")
        return {kind: resource.getrlimit(getattr(resource, kind))[0] for kind in kinds}
        """
    )
    assert limits["RLIMIT_CORE"] == 0
    assert 0 < limits["RLIMIT_FSIZE"] <= sandbox.FILE_SIZE_BYTES
    assert 0 < limits["RLIMIT_AS"] <= sandbox.ADDRESS_SPACE_BYTES
    assert 0 < limits["RLIMIT_NOFILE"] <= sandbox.OPEN_FILES


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_the_child_writes_in_its_scratch_folder_only(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Neither new files nor changed, removed, moved or emptied ones elsewhere, nor by a grandchild."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    found = run(
        """
        import os, pathlib, subprocess, sys
        outside, done = pathlib.Path(request["outside"]), []
        def tried(name, call):
            try:
                call()
                done.append(name)
            except OSError:
                pass
        tried("new", lambda: (outside / "new").write_text("x"))
        tried("changed", lambda: (outside / "kept").write_text("x"))
        tried("truncated", lambda: os.truncate(outside / "kept", 0))
        tried("removed", lambda: (outside / "kept").unlink())
        tried("folder", lambda: (outside / "folder").mkdir())
        tried("link", lambda: (outside / "link").symlink_to("kept"))
        tried("moved in", lambda: os.rename("child.log", outside / "log"))
        tried("moved out", lambda: os.rename(outside / "kept", "kept"))
        tried("home", lambda: (pathlib.Path(request["home"]) / ".steelyard-was-here").touch())
        tried("shm", lambda: pathlib.Path("/dev/shm/steelyard-was-here").touch())
        code = subprocess.call([sys.executable, "-c", "open(r'%s', 'w')" % (outside / "by a grandchild")],
                               stderr=subprocess.DEVNULL)
        pathlib.Path("inside").write_text("x")
        pathlib.Path("inside").rename("moved")
        pathlib.Path("moved").unlink()
        open(os.devnull, "w").write("x")
        return {"done": done, "grandchild": code, "read": (outside / "kept").read_text()}
        """,
        {"outside": str(outside), "home": str(Path.home())},
    )
    if not _landlock():
        pytest.skip("this kernel has no Landlock")
    assert found["done"] == []
    assert found["grandchild"] != 0
    assert found["read"] == "kept"
    assert [path.name for path in outside.iterdir()] == ["kept"]


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_the_child_signals_nobody(run: Callable[..., dict[str, Any]]) -> None:
    """It runs under the same user, but may not end the service's processes."""
    bystander = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = run(
            """
            import os
            try:
                os.kill(request["pid"], 0)
                return {"reached": True}
            except PermissionError:
                return {"reached": False}
            """,
            {"pid": bystander.pid},
        )
    finally:
        bystander.kill()
        bystander.wait()
    if _landlock() < 6:
        pytest.skip("this kernel's Landlock knows no scopes")
    assert found["reached"] is False


def _landlock() -> int:
    """Return the version of Landlock that this kernel has, below 1 for none."""
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))
