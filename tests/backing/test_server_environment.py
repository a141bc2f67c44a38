"""The server that the tests start is the release whose client the service has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", path.read_text(), re.MULTILINE))


@pytest.mark.sample
def test_the_server_has_the_clients_release() -> None:
    """MLflow's three parts have one version, that of mlflow-skinny in requirements.lock; so has all that both need."""
    ours, servers = _pins(ROOT / "requirements.lock"), _pins(Path(__file__).with_name("mlflow-server.lock"))
    assert servers["mlflow"] == servers["mlflow-skinny"] == ours["mlflow-skinny"]
    assert {name: servers[name] for name in servers.keys() & ours.keys()} == {
        name: ours[name] for name in servers.keys() & ours.keys()
    }
