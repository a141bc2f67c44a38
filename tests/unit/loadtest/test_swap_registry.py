"""The alias is moved from another process, and told of as the service checks it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import releases
from swap_registry import Hand, delivery

from models.weights.mlflow_registry import MlflowRegistry
from serve.webhook import AliasMoved, concerns, read_event, verify

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_alias_is_moved_by_another_process(tmp_path: Path) -> None:
    """It names the version afterwards, under a promotion of its own, and the moment told lies before that."""
    registry = MlflowRegistry(f"sqlite:///{tmp_path}/home/registry/mlflow.db")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.onnx").write_bytes(b"graph")
    for _ in range(2):
        registry.create_version(releases.MODEL, tmp_path / "files", tags={}, metrics={})
    registry.promote(releases.MODEL, "1", promotion="p", reason="test")
    with Hand(tmp_path / "home", "secret") as hand:
        before = time.time()
        moved = await hand.move("2")
    desired = registry.desired(releases.MODEL)
    assert desired is not None
    assert (desired.version, desired.promotion == "p") == ("2", False)
    assert before <= moved <= time.time()


def test_a_delivery_is_signed_as_the_service_checks_it() -> None:
    """The service's own reading finds it genuine and about the alias; no two have one id."""
    headers, body = delivery("secret", "3")
    lower = {name.lower(): value for name, value in headers.items()}
    assert verify(lower, body, secret="secret", now=time.time()).ident  # noqa: S106 - the test's own
    event = read_event(body)
    assert (event, concerns(event)) == (AliasMoved("bench", "production"), True)
    assert delivery("secret", "3")[0]["X-MLflow-Delivery-Id"] != headers["X-MLflow-Delivery-Id"]
