"""The README is true: every shell and Python block in it runs, in order, against the service that it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from running import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RECURSIVE = "make test"
"""The one command that is not run from here, because it is what runs this test."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the block that follows it, if any."""

    language: str
    text: str
    line: int


def _blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in _BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home and a port of its own, so that the reader's own service is left alone."""
    return os.environ | {
        "STEELYARD_HOME": str(tmp_path_factory.mktemp("readme") / "home"),
        "STEELYARD_PORT": str(free_port()),
        "SCRATCH": str(tmp_path_factory.mktemp("scratch")),
    }


@pytest.fixture(scope="module")
def served(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Run the README's first command until it answers; interrupt it at the end as Ctrl-C would."""
    serve = next(b for b in _blocks() if b.language == "sh" and "make serve" in b.text)
    log = Path(environment["SCRATCH"]) / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/bash", "-euc", f"exec {serve.text.strip().splitlines()[-1]}"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{environment['STEELYARD_PORT']}/healthz/ready", log)
            yield environment
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                begun = time.monotonic()
                process.wait(timeout=30)
                assert time.monotonic() - begun < 10.0, "Ctrl-C took longer than ten seconds"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)  # a real service starts in real time; nothing here can be injected
    pytest.fail(f"make serve did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


def _run(block: Block, environment: dict[str, str]) -> str:
    text = block.text.replace("127.0.0.1:8000", f"127.0.0.1:{environment['STEELYARD_PORT']}")
    command = (
        [sys.executable, "-c", text] if block.language == "python" else ["/bin/bash", "-euo", "pipefail", "-c", text]
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"README line {block.line}:\n{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_of_the_readme_runs(served: dict[str, str]) -> None:
    """Shell and Python blocks succeed as written, and a JSON block is what the block before it really prints."""
    printed = ""
    ran = 0
    for block in _blocks():
        if block.language in {"sh", "python"}:
            if "make serve" in block.text or block.text.strip() == _RECURSIVE:
                continue
            printed = _run(block, served)
            ran += 1
        elif block.language == "json":
            expected, actual = json.loads(block.text), json.loads(printed)
            _assert_same_boxes(expected, actual)
            assert set(expected["metadata"]) == set(actual["metadata"])
    assert ran >= 3


def _assert_same_boxes(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """Compare the first image's products; a CPU of another arithmetic may move a box by some pixels."""
    documented, found = (sorted(a["images"][0]["results"], key=lambda r: r["name"]) for a in (expected, actual))
    assert [r["name"] for r in documented] == [r["name"] for r in found]
    for one, other in zip(documented, found, strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=4.0)


def test_the_readme_names_both_commands_first() -> None:
    """A stranger reads ``make serve`` and ``make test`` before anything else that can be typed."""
    shell = [b.text.strip() for b in _blocks() if b.language == "sh"]
    assert "make serve" in shell[0]
    assert any(text == _RECURSIVE for text in shell[:3])
