"""The fence of the unit suite: no test in it may start Ray."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest


@pytest.fixture(autouse=True)
def _forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``ray.init`` and everything that would start Ray fail."""
    import ray  # noqa: PLC0415 - the fence is the only reason to import it here

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a unit test started Ray; move it to tests/integration")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr("ray._private.auto_init_hook.auto_init_ray", refuse, raising=False)
