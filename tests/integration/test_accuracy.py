"""COCO mAP through the API beside Ultralytics' own validation of the same weights, without Ray."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from coco import VERSIONS, checkpoint

from models.engine.backends.select import select_backend
from models.engine.engine import Engine
from models.weights.release import open_release, read_folder
from serve.client_answers import read_answer
from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loadtest"))

import accuracy
from ultralytics_val import CONF, IOU, MAX_DET, Ultralytics

if TYPE_CHECKING:
    from models.types import Detections, Release
    from models.weights.fake_registry import FakeRegistry

pytestmark = [pytest.mark.shared, pytest.mark.long]

AT_ONCE = 8


class OneEngine(FakeService):
    """A service over one real engine; nothing else of it is asked."""

    def __init__(self, engine: Engine) -> None:
        """Serve ``engine`` as the model ``coco``."""
        super().__init__()
        self.one = engine

    @property
    def engines(self) -> dict[str, Engine]:  # type: ignore[override]
        """Return the engine under its model's name."""
        return {"coco": self.one}


def served(release: Release, images: list[Path]) -> dict[str, Detections]:
    """Return what the API answers to every image, by file name: fp32, the request flow of a replica, no network."""
    bodies = [image.read_bytes() for image in images]

    async def scene() -> dict[str, Detections]:
        runtime = select_backend("openvino", precision="fp32", threads=2, gpu=False)
        async with Engine(runtime) as engine:
            await engine.prepare(release)
            engine.flip(release.digest, 1)
            app = create_app(OneEngine(engine), Settings(models=("coco",)))
            gate = asyncio.Semaphore(AT_ONCE)
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=60) as client:

                async def ask(picture: bytes) -> Detections:
                    async with gate:
                        answer = await client.post(
                            "/v1/detect",
                            params={"conf": CONF, "iou": IOU, "max_det": MAX_DET},
                            content=picture,
                            headers={"Content-Type": "image/jpeg"},
                        )
                    answer.raise_for_status()
                    return accuracy.boxes(read_answer(answer.json()).boxes)

                found = await asyncio.gather(*map(ask, bodies))
        return {image.name: each for image, each in zip(images, found, strict=True)}

    return asyncio.run(scene())


@pytest.mark.parametrize("name", list(VERSIONS))
def test_the_service_sees_coco128_as_ultralytics_does(
    name: str, shared: Path, coco: FakeRegistry, tmp_path: Path
) -> None:
    """In fp32 its mAP50-95 lies within 0.3 points of Ultralytics' validation on the tensors and NMS of ``predict``."""
    pytest.importorskip("openvino")
    images = sorted((shared / "data" / "coco128" / "images").glob("*.jpg"))[::2]
    if not images:
        pytest.skip("coco128 is not in the folder that STEELYARD_SHARED names")
    coco.fetch("coco", VERSIONS[name], tmp_path)
    digest = coco.version("coco", VERSIONS[name]).digest
    release = open_release("coco", VERSIONS[name], read_folder(tmp_path), expect_digest=digest)
    judge = Ultralytics(checkpoint(shared, name), images)
    theirs = judge.val(frozenset())
    assert judge.end2end == (release.contract.head == "end2end")
    ours = judge.score(served(release, images))
    assert theirs.map50_95 > 30
    assert abs(ours.map50_95 - theirs.map50_95) <= accuracy.ALLOWED, f"{ours} {theirs}"
