"""What the tests of the edge share: a client on an application over a fake service; a whole rollout in a process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from fastapi import FastAPI
    from rollout_world import Fleet

sys.path.insert(0, str(Path(__file__).parent))

LOCAL = "http://127.0.0.1:8000"


@pytest.fixture
def service() -> FakeService:
    """Return two models, the first of which answers /v1/detect."""
    return FakeService("checkout", "street")


@pytest.fixture
def settings() -> Settings:
    """Return small limits, so that exceeding them is cheap."""
    return Settings(models=("checkout", "street"), max_body_bytes=1_000_000, max_images=4)


@pytest.fixture
def app(service: FakeService, settings: Settings) -> FastAPI:
    """Return the application under test."""
    return create_app(service, settings)


def connect(app: FastAPI) -> AbstractAsyncContextManager[httpx.AsyncClient]:
    """Return a client whose requests go straight into ``app``, as if from this machine."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=LOCAL)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client on the application under test."""
    async with connect(app) as opened:
        yield opened


@pytest.fixture
def connected() -> Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]:
    """Return what opens a client on an application of the test's own."""
    return connect


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Return a service, with nothing of it running, whose whole rollout happens in this process."""
    from rollout_world import Fleet  # noqa: PLC0415 - found on the path that this file extends

    return Fleet(tmp_path)
