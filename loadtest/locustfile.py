"""Locust users of the detection API: paced arrivals, a web page with live charts, many machines if need be.

    STEELYARD_IMAGE=models/demo/sample-tray.jpg locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 \
        --headless --users 20 --spawn-rate 5 --run-time 60s

Each user sends ``STEELYARD_RATE`` requests a second (default 1) however long the answers take, as long as one answer
takes less than 1/rate seconds: arrivals come from a clock and not from the service's own speed. Give more users rather
than a higher rate. ``STEELYARD_MODEL`` names the model; the service's first one is the default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from locust import FastHttpUser, constant_throughput, events, task

if TYPE_CHECKING:
    from locust.env import Environment


@events.init.add_listener
def _check_image(environment: Environment, **_: object) -> None:
    """Refuse to start without a picture: Locust would count the same failure once a request instead."""
    if not Path(os.environ.get("STEELYARD_IMAGE", "")).is_file():
        environment.process_exit_code = 2
        msg = "STEELYARD_IMAGE names no file; set it to the picture to post"
        raise SystemExit(msg)


class DetectUser(FastHttpUser):
    """Posts one picture at a steady rate and calls an answer good only if it names its version and holds results."""

    def wait_time(self) -> float:
        """Return the seconds until this user's next request is due."""
        paced: float = constant_throughput(self._rate)(self)
        return paced

    network_timeout = 60.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Read the picture, the rate and the model's name once."""
        self._rate = float(os.environ.get("STEELYARD_RATE", "1"))
        self._image = Path(os.environ["STEELYARD_IMAGE"]).read_bytes()
        model = os.environ.get("STEELYARD_MODEL")
        self._path = "/v1/detect" if model is None else f"/v1/models/{quote(model, safe='')}/detect"

    @task
    def detect(self) -> None:
        """Post the picture once."""
        with self.client.post(
            self._path,
            data=self._image,
            headers={"Content-Type": "application/octet-stream"},
            name="detect",
            catch_response=True,
        ) as response:
            if response.status_code != 200:  # noqa: PLR2004 - HTTP OK
                response.failure(f"status {response.status_code}")
            elif "X-Model-Version" not in response.headers or '"results"' not in (response.text or ""):
                response.failure("an answer without version or results")
