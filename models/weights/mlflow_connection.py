"""A connection to MLflow, opened at the first call, and what its errors become."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from models.errors import RegistryError, ReleaseRejectedError, UnknownModelError, UnknownVersionError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT_S = 60.0
_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    # MLflow's own defaults make a call to a dead server block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


class MlflowConnection:
    """Thread-safe. ``database`` is the SQLite file, None where ``uri`` is a server's URL."""

    def __init__(self, uri: str) -> None:
        """Keep the address, ``sqlite:///<path>`` or the URL of an MLflow server; nothing is opened yet."""
        self.uri = uri
        self.database = Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
        self._lock = threading.Lock()
        self._client: Any = None

    @contextlib.contextmanager
    def reaching(self) -> Iterator[Any]:
        """Yield the client; turn whatever MLflow, SQLAlchemy or the network raise into RegistryError."""
        try:
            yield self.connect()
        except (UnknownModelError, UnknownVersionError, RegistryError, ReleaseRejectedError):
            raise
        except Exception as error:
            log_cause(error)
            msg = "The registry cannot be reached or refuses; check its address and that it runs, then try again."
            raise RegistryError(msg) from error

    def connect(self) -> Any:
        """Return MLflow's client; the first call takes seconds. Raises RegistryError or whatever MLflow raises."""
        with self._lock:
            if self._client is None:
                self._client = self._open()
            return self._client

    def _open(self) -> Any:
        # Before the first import of mlflow, which reads them; an operator's own choice wins.
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if self.database is None:
            return _client(self.uri)
        self.database.parent.mkdir(parents=True, exist_ok=True)
        # Processes that create the tables at the same time break the database for good.
        lock = FileLock(f"{self.database}.lock", timeout=LOCK_TIMEOUT_S)
        try:
            with lock:
                client = _client(self.uri)
                client.search_registered_models(max_results=1)
        except Timeout:
            msg = "Another process keeps the registry locked; stop it or wait, then try again."
            raise RegistryError(msg) from None
        return client


def _client(uri: str) -> Any:
    from mlflow import MlflowClient  # noqa: PLC0415 - takes two seconds, and reads the environment

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def log_cause(error: Exception) -> None:
    """Keep for the operator what a caller is not told."""
    logging.getLogger(__name__).info("registry call failed: %s: %s", type(error).__name__, str(error)[:300])
