"""Schemathesis on the service's own OpenAPI document, with all of its checks.

CI takes a sample. ``STEELYARD_SCHEMA_EXAMPLES=400`` makes it more than 5000 cases.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn
from running import free_port

from serve.fake_service import FakeService
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("schemathesis")
EXAMPLES = int(os.environ.get("STEELYARD_SCHEMA_EXAMPLES", "12"))
"""Most generated cases an operation and phase; the fixed ones at the schema's edges come on top."""
FEWEST = 600
"""Cases below which something has kept Schemathesis from its work."""
FULL = 400
"""Examples from which on there must be 5000 cases."""
KEY = "sesame"
CHANGING = "promote|rollback|faults|hooks"
LIMIT_S = 120.0 + 3.0 * EXAMPLES


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[str]:
    """Yield the address of the whole HTTP application over a fake service, behind a real HTTP server."""
    settings = Settings(home=tmp_path, models=("checkout", "street"), webhook_secret="hooked", admin_key=KEY)  # type: ignore[arg-type]  # noqa: S106 - opens nothing but this test
    port = free_port()
    app = create_app(FakeService("checkout", "street"), settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, name="fake service")
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the fake service does not start"
        time.sleep(0.05)  # the server under test lives in real time
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=30)


def check(url: str, *arguments: str) -> int:
    """Run every check on the service at ``url`` and return the number of cases; fail where any found something."""
    command = [
        *(COMMAND, "--config-file", HERE / "schemathesis.toml", "run", f"{url}/openapi.json"),
        *("--checks", "all", "--max-examples", str(EXAMPLES), "--seed", "1", "--no-shrink", "--continue-on-failure"),
        *arguments,
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "schema_checks", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    ran = subprocess.run(
        command, env=os.environ | hooks, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    counted = re.search(r"(\d+) generated", ran.stdout)
    assert counted is not None, ran.stdout[-2000:]
    return int(counted[1])


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_application_keeps_its_own_schema(fake: str) -> None:
    """Every route, with the admin key and without."""
    cases = check(fake, "--header", f"Authorization: Bearer {KEY}")
    assert cases >= (5000 if EXAMPLES >= FULL else FEWEST)


@pytest.mark.timeout(LIMIT_S + 60)
def test_the_service_keeps_its_own_schema(service: Service) -> None:
    """Through HAProxy and a real detector; routes that would change what the other tests meet are left out."""
    cases = check(service.url, "--exclude-path-regex", CHANGING, "--phases", "coverage,fuzzing")
    assert cases >= FEWEST // 2
    assert service.detect()["images"][0]["results"]
