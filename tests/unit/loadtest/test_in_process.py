"""The engine under closed loops of clients, as the in-process measurement and a GPU's replicas drive it."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
from in_process import drive, serving

from models.engine.backends.fake import FakeBackend
from models.engine.engine import EngineSettings
from models.types import Contract, Release, Thresholds


async def test_every_answer_of_every_client_is_counted() -> None:
    """The rate is the answers over the time, the engine has run as many images, and it is closed afterwards."""
    contract = Contract("detect", ("apple",), 32, 64, "end2end")
    release = Release("till", "1", "a" * 64, contract, Thresholds(), {})
    picture = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    backend = FakeBackend()
    async with serving(backend, release, EngineSettings(threads=1)) as engine:
        before = sum(call.size for call in backend.calls)
        found = await drive(engine, itertools.repeat(picture), clients=3, seconds=0.1)
        ran = sum(call.size for call in backend.calls) - before
    assert found.images == ran >= 3
    assert found.rate == found.images / found.seconds
    assert found.p50_ms is not None
    assert all(session.closed for session in backend.sessions)
