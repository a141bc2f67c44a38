"""Services in front of real programs of others: PostgreSQL, MLflow's server, Redis. Skipped where they are absent."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

TESTS = Path(__file__).parents[1]
# Test folders are no packages, so what they share is found beside them.
sys.path[:0] = [str(Path(__file__).parent), str(TESTS / "faults"), str(TESTS / "integration")]
sys.path.append(str(TESTS.parent / "loadtest"))

from daemons import Mlflow, Postgres, mlflow_program, postgres_program  # noqa: E402 - on the path that stands only now
from running import STEELYARD, Service, start, stop  # noqa: E402 - likewise

from models import demo  # noqa: E402 - likewise

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Registry:
    """An MLflow server over PostgreSQL, and how a command elsewhere sees it: by its URI, with a home of its own."""

    postgres: Postgres
    mlflow: Mlflow
    home: Path

    def register(self, number: int, *options: str) -> subprocess.CompletedProcess[str]:
        """Register the demo detector's weights ``number`` by the command, over HTTP alone."""
        command = [STEELYARD, "register", str(demo.weights_path(number)), "--model", demo.MODEL_NAME]
        return subprocess.run(
            [*command, "--golden", str(demo.GOLDEN_DIR), *options],
            env=os.environ | {"STEELYARD_HOME": str(self.home), "STEELYARD_REGISTRY_URI": self.mlflow.url},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Return a registry that holds one version of the demo detector, promoted."""
    mlflow_program()
    postgres_program("postgres")
    with Postgres() as postgres, Mlflow(postgres.uri) as mlflow:
        made = Registry(postgres, mlflow, tmp_path_factory.mktemp("elsewhere"))
        registered = made.register(1, "--promote")
        assert registered.returncode == 0, registered.stderr
        yield made


@pytest.fixture(scope="session")
def service(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a running service of two replicas with an empty home, which was told the registry's URI and nothing else.

    What judges a version by times is lenient or off: these tests take away what the service leans on while it measures.
    """
    folder = tmp_path_factory.mktemp("service")
    started = start(
        folder / "home",
        folder / "serve.log",
        "--replicas",
        "2",
        STEELYARD_REGISTRY_URI=registry.mlflow.url,
        STEELYARD_POLL_INTERVAL_S="0.5",
        STEELYARD_LATENCY_FACTOR="100",
        STEELYARD_TRIAL_IMAGES="20",
        STEELYARD_PROBATION_S="0",
    )
    try:
        yield started
    finally:
        stop(started)
