"""``steelyard serve`` without a cluster: addresses, leftovers, signals, background work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ConversionError, SettingsError
from serve.cluster import PREFIX
from serve.environment import token_path
from serve.home import ServiceRecord, only_service, read_record, remember_folder, write_record
from serve.launch import SIGNALS, _Background, _stop_signals, address, clear_leftovers, ready_deadline_s, run
from serve.settings import Settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104
        ("::", "http://[::1]:8000"),
    ],
)
def test_the_url_is_one_that_works_on_this_machine(host: str, url: str) -> None:
    """An address that means every interface is no address to connect to."""
    assert address(Settings(host=host, admin_key="k")) == url


def test_models_that_are_prepared_in_turn_are_waited_for_in_turn() -> None:
    """The second model begins when the first one is ready, and has as long."""
    one, two = (Settings(models=models, prepare_timeout_s=100.0) for models in (("a",), ("a", "b")))
    assert ready_deadline_s(two) == ready_deadline_s(one) + 100.0


def test_a_home_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The second start ends with one line, and the record of the first stays."""
    with only_service(tmp_path):
        write_record(tmp_path, ServiceRecord("http://127.0.0.1:8000", os.getpid()))
        with pytest.raises(SettingsError, match="runs out of"):
            run(Settings(home=tmp_path), {"checkout": None})
        assert read_record(tmp_path) is not None


def test_a_missing_weights_file_touches_nothing(tmp_path: Path) -> None:
    """Not even the home folder is made for a start that cannot succeed."""
    with pytest.raises(ConversionError, match="there is no weights file"):
        run(Settings(home=tmp_path / "home"), {"tray": str(tmp_path / "tray.onnx")})
    assert not (tmp_path / "home").exists()


def test_a_start_beyond_loopback_without_keys_touches_nothing(tmp_path: Path) -> None:
    """It is refused before there is a home, a process or a port."""
    with pytest.raises(SettingsError, match="steelyard access add NAME --scope predict"):
        run(Settings(home=tmp_path / "home", host="0.0.0.0"), {"checkout": None})  # noqa: S104
    assert not (tmp_path / "home").exists()


def test_what_a_dead_service_left_behind_is_cleared(tmp_path: Path) -> None:
    """Its record, its folder and its processes go; a folder that is not one of ours stays."""
    folder = tmp_path / f"{PREFIX}dead"
    folder.mkdir()
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token_path(folder))}
    program = "import time; print('here', flush=True); time.sleep(60)"
    orphan = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    try:
        # For a moment after its start, a process shows no environment yet.
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == b"here\n"
        write_record(tmp_path, ServiceRecord("http://127.0.0.1:8000", 1))
        remember_folder(tmp_path, folder)
        clear_leftovers(tmp_path)
        assert orphan.wait(timeout=10) == -signal.SIGKILL
    finally:
        orphan.kill()
        orphan.communicate()
    assert read_record(tmp_path) is None
    assert not folder.exists()
    foreign = tmp_path / "precious"
    foreign.mkdir()
    remember_folder(tmp_path, foreign)
    clear_leftovers(tmp_path)
    assert foreign.exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_each_stop_signal_interrupts_and_is_given_back(number: signal.Signals) -> None:
    """Ctrl-C, a plain kill and a closed terminal all end a service in order; afterwards the old handlers stand."""
    before = signal.getsignal(number)
    with _stop_signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        signals.ignore()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_background_work_hands_over_its_error() -> None:
    """What keeps registration from succeeding is raised where the start waits for it."""

    def fail() -> None:
        msg = "the file is damaged"
        raise ConversionError(msg)

    checks: list[None] = []
    with pytest.raises(ConversionError, match="damaged"):
        _Background(fail).wait(lambda: checks.append(None))
    done = _Background(lambda: None)
    done.wait(lambda: None)
    done.raise_if_failed()


def test_waiting_for_background_work_ends_when_the_check_raises() -> None:
    """A cluster that died meanwhile is told at once."""
    import threading  # noqa: PLC0415 - for this test only

    release = threading.Event()

    def check() -> None:
        raise SettingsError

    try:
        with pytest.raises(SettingsError):
            _Background(lambda: release.wait(10)).wait(check)  # type: ignore[arg-type, return-value]
    finally:
        release.set()
