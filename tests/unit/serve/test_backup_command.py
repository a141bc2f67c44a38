"""``steelyard backup`` and ``restore``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from models.weights.cache import Committed, CommittedStore
from serve.commands.application import app

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STEELYARD_")]:
        monkeypatch.delenv(name)


def steelyard(*arguments: object) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_there_and_back(tmp_path: Path) -> None:
    """JSON on stdout and nothing else; for people a line, and a note where the registry is elsewhere."""
    CommittedStore(tmp_path / "home").save(Committed("checkout", 3, "1", "ab" * 32))
    first = steelyard("backup", tmp_path / "b.tar", "--home", tmp_path / "home", "--json")
    second = steelyard("restore", tmp_path / "b.tar", "--home", tmp_path / "new", "--json")
    told = steelyard("backup", tmp_path / "c.tar", "--home", tmp_path / "new")

    assert (first.exit_code, second.exit_code, told.exit_code) == (0, 0, 0)
    done = json.loads(first.stdout)
    assert (done["files"], done["registry"], done["home"]) == (1, False, str(tmp_path / "home"))
    assert json.loads(second.stdout)["files"] == 1
    assert CommittedStore(tmp_path / "new").load("checkout") is not None
    assert "2 files" in told.stdout
    assert "back it up where it is" in told.stderr


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_what_cannot_be_done_is_one_line(tmp_path: Path, command: str) -> None:
    """Nothing to back up, nothing to restore: exit code 1 or 2, and no file."""
    (tmp_path / "home").mkdir()
    done = steelyard(command, tmp_path / "b.tar", "--home", tmp_path / "home")
    assert done.exit_code in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "b.tar").exists()
