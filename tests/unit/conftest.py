"""The fence of the unit suite, no test in it may start Ray, and which of its tests share a process."""

from __future__ import annotations

import gc
import re
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

TOGETHER = {
    "torch": re.compile(r"test_torch_|test_backend\.py::\w+\[torch|loadtest/test_(gpu|accuracy)"),
    "mlflow": re.compile(r"test_registry\.py::\w+\[mlflow|test_mlflow"),
    "scenes": re.compile(r"test_(every_class_appears|nothing_is_hidden)"),
}
"""Tests that import or build what takes seconds: once in one process instead of once in each."""
RUNTIME = re.compile(r"test_backend\.py::\w+(\[.*\])")


class SecondsOnce(LoadScopeScheduling):
    """Gives each process of pytest-xdist one test after another, and the tests of TOGETHER to one of them."""

    def _split_scope(self, nodeid: str) -> str:
        for name, tests in TOGETHER.items():
            if tests.search(nodeid):
                return name
        runtime = RUNTIME.search(nodeid)
        return runtime[1] if runtime else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SecondsOnce:
    """Replace the scheduler of ``-n``."""
    return SecondsOnce(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking all imported modules again and again: none of them ever dies."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``ray.init`` and everything that would start Ray fail."""
    import ray  # noqa: PLC0415 - the fence is the only reason to import it here

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a unit test started Ray; move it to tests/integration")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr("ray._private.auto_init_hook.auto_init_ray", refuse, raising=False)
