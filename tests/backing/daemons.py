"""Programs that a service leans on, with files and ports of their own on loopback: started, killed, started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import psutil
import pytest
from running import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

LOOPBACK: Final = "127.0.0.1"
START_S: Final = 120.0
END_S: Final = 20.0
POLL_S: Final = 0.05


class Daemon:
    """One program with a folder of its own, run as a user of the system where this process is root.

    Use as a context manager: it begins with an empty folder, which goes in the end with all that runs.
    """

    def __init__(self, name: str, *, user: str | None = None) -> None:
        """Start nothing yet. user: who runs the program, None for this process's user."""
        self.port = free_port()
        self._name = name
        self._user = user if user is not None and os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path()

    def command(self) -> list[str]:
        """Return the command line."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what the program finds in its environment beside this process's own."""
        return {}

    def prepare(self) -> None:
        """Make what the program wants to find in its folder."""

    def answers(self) -> bool:
        """Return whether the program does its work."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Make the folder, start the program and wait until it answers."""
        # Not below pytest's own folder, into which another user may not look.
        self.folder = Path(tempfile.mkdtemp(prefix="sb"))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        try:
            self.prepare()
            self.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what runs, and remove the folder."""
        self._clear()

    def start(self) -> None:
        """Start the program on the files that there are; return once it answers. Raises AssertionError with its log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._as_user(),
            )
        process, deadline = self._process, time.monotonic() + START_S
        while not self.answers():
            late = time.monotonic() > deadline
            if late or process.poll() is not None:
                said = self.log.read_text(errors="replace")[-4000:]
                msg = f"{self._name} {'does not answer' if late else 'has ended'}; it said:\n{said}"
                raise AssertionError(msg)
            time.sleep(POLL_S)  # programs live in real time

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the program's first process a signal; return once it and all that it had started are gone."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        self._process.send_signal(number)
        self._process.wait(END_S)
        if number == signal.SIGKILL:
            # As when the machine that it ran on is lost: nobody is left to say good-bye.
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        _, left = psutil.wait_procs(family, timeout=END_S)
        assert left == [], f"{self._name} leaves {left}"

    @property
    def log(self) -> Path:
        """Return the file that takes what the program prints."""
        return self.folder / "log"

    def _clear(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        account = pwd.getpwnam(self._user)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


class Postgres(Daemon):
    """A PostgreSQL with one database for everybody on this machine. uri: as SQLAlchemy takes it.

    With the driver's name: which one "postgresql:" alone means differs between releases of SQLAlchemy.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        super().__init__("PostgreSQL", user="postgres")
        self.uri = f"postgresql+psycopg2://steelyard@{LOOPBACK}:{self.port}/postgres"

    def prepare(self) -> None:
        """Make the database."""
        options = ["--username=steelyard", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [postgres_program("initdb"), *options, str(self.folder / "data")],
            cwd=self.folder,
            check=True,
            capture_output=True,
            timeout=START_S,
            **self._as_user(),
        )

    def command(self) -> list[str]:
        """Return the command line."""
        where = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-h", LOOPBACK, "-p", str(self.port)]
        return [postgres_program("postgres"), *where]

    def answers(self) -> bool:
        """Return whether it accepts connections."""
        asked = [postgres_program("pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        return subprocess.run(asked, check=False, timeout=END_S).returncode == 0


class Mlflow(Daemon):
    """An MLflow server that keeps its records in ``database`` and hands artifacts out itself, as on a cluster."""

    def __init__(self, database: str) -> None:
        """Start nothing yet. database: SQLAlchemy's URI."""
        super().__init__("the MLflow server")
        self.url = f"http://{LOOPBACK}:{self.port}"
        self._database = database

    @property
    def artifacts(self) -> Path:
        """Return the folder of the artifacts, which nobody but the server needs to know."""
        return self.folder / "artifacts"

    def environment(self) -> dict[str, str]:
        """Return what keeps the server to what is asked of it here."""
        return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def command(self) -> list[str]:
        """Return the command line: the manifest's but for one worker, which starts sooner."""
        store = ["--backend-store-uri", self._database, "--serve-artifacts"]
        artifacts = ["--artifacts-destination", str(self.artifacts)]
        where = ["--host", LOOPBACK, "--port", str(self.port), "--workers", "1"]
        return [mlflow_program(), "server", *where, *store, *artifacts]

    def answers(self) -> bool:
        """Return whether it answers from its database."""
        search = f"{self.url}/api/2.0/mlflow/registered-models/search"
        try:
            return httpx.get(search, timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def postgres_program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, or skip the test where it is not installed."""
    # Debian keeps those of the server off the path, one folder a version.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = next((str(folder / name) for folder in reversed(folders) if (folder / name).is_file()), shutil.which(name))
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    return found


def mlflow_program() -> str:
    """Return the path of a whole MLflow's command, or skip the test where ``make backing`` has installed none."""
    found = Path(os.environ.get("STEELYARD_MLFLOW", Path(__file__).parents[2] / ".venv-mlflow" / "bin" / "mlflow"))
    if not found.is_file():
        pytest.skip("no MLflow server is installed: `make backing` does it, in an environment of its own")
    return str(found.absolute())


def until(true: Callable[[], bool], within_s: float, what: str) -> float:
    """Poll until ``true`` and return the seconds it took. Raises AssertionError that names ``what``."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() < begun + within_s, f"{what} did not get there within {within_s:.0f} s"
        time.sleep(POLL_S)  # programs live in real time
    return time.monotonic() - begun


def listens(address: str, port: int) -> bool:
    """Return whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0
