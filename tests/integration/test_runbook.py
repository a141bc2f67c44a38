"""``k8s/RUNBOOK.md``: every block that does not say what it needs beside a running service runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from running import start, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running import Service

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_AWAY = ("# Needs a cluster.", "# Needs Docker.")


@pytest.fixture(scope="module")
def runbook_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service of its own, for the runbook changes what serves."""
    folder = tmp_path_factory.mktemp("runbook")
    service = start(folder / "home", folder / "serve.log", STEELYARD_POLL_INTERVAL_S="0.5")
    try:
        yield service
    finally:
        stop(service)


def test_every_block_of_the_runbook_runs(runbook_service: Service, tmp_path: Path) -> None:
    """In the order of the page, each in a shell of its own that has read the page's first block."""
    first, *blocks = _BLOCK.findall((ROOT / "k8s" / "RUNBOOK.md").read_text(encoding="utf-8"))
    prelude = first.replace("http://127.0.0.1:8000", runbook_service.url)
    assert runbook_service.url in prelude
    environment = os.environ | {"STEELYARD_HOME": str(runbook_service.home), "SCRATCH": str(tmp_path)}
    # The demo begins with version 2; without a change of version there is none to go back to.
    promoted = runbook_service.cli("promote", "checkout", "1", timeout=300)
    assert promoted.returncode == 0, promoted.stderr
    runbook_service.detect()
    ran = []
    for block in blocks:
        if block.startswith(_AWAY):
            continue
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", prelude + block],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        ran.append((block, done.stdout))
    assert len(ran) >= 20
    silent = [block for block, printed in ran if not printed.strip()]
    assert not silent, "these showed nothing, so a name in them may be wrong"
