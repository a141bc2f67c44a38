"""``steelyard access``: a key is printed once, and the list never tells what it is."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from serve.access import AccessKeys
from serve.access_document import read_keys
from serve.commands.application import app

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


@pytest.fixture(autouse=True, name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home folder of the commands, whose settings come from the environment alone."""
    for name in [name for name in os.environ if name.startswith("STEELYARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STEELYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str) -> Result:
    """Run ``steelyard access`` with ``arguments``."""
    return CliRunner().invoke(app, ["access", *arguments])


def done(*arguments: str) -> dict[str, Any]:
    """Run a command that must go well, and return its JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def opens(home: Path, text: str, *, after_s: float = 0.0) -> bool:
    """Return whether the access file's keys know ``text``."""
    return AccessKeys(read_keys(home / "access.json") or ()).find(text.encode(), time.time() + after_s) is not None


def test_a_key_is_made_printed_alone_and_kept_as_a_digest(home: Path) -> None:
    """What a script reads on stdout is the key and nothing else."""
    result = run("add", "till", "--scope", "predict", "--scope", "metrics", "--rate", "50", "--concurrency", "8")
    assert result.exit_code == 0, result.output
    text = result.stdout.strip()
    assert text.startswith("sy_")
    assert len(text.split()) == 1
    assert "keys are in force now" in result.stderr
    assert opens(home, text)
    secret = text.rpartition("_")[2]
    assert secret not in (home / "access.json").read_text()
    assert stat.S_IMODE((home / "access.json").stat().st_mode) == 0o600
    (row,) = done("list")["keys"]
    assert row == row | {"name": "till", "scopes": ["metrics", "predict"], "rate_per_s": 50.0, "concurrency": 8}
    assert (row["expires"], row["state"]) == (None, "valid")
    shown = run("list")
    assert "till" in shown.stdout
    for output in (shown.output, json.dumps(row)):
        assert secret not in output
        assert "digest" not in output
    assert "keys are in force now" not in run("add", "other", "--scope", "admin").output


def test_a_key_ends_after_its_time(home: Path) -> None:
    """Days, hours, minutes and seconds."""
    for span, seconds in (("90d", 7_776_000), ("12h", 43_200), ("30m", 1800), ("45s", 45)):
        text = done("add", f"for-{span}", "--scope", "predict", "--expires", span)["key"]
        assert opens(home, text, after_s=seconds - 5)
        assert not opens(home, text, after_s=seconds + 5)


def test_a_rotation_keeps_the_old_secret_for_the_overlap(home: Path) -> None:
    """And then a second one ends it at once."""
    made = done("add", "till", "--scope", "predict", "--rate", "5")
    turned = done("rotate", "till", "--overlap", "1h")
    assert (turned["id"], turned["rate_per_s"], turned["state"]) == (made["id"], 5.0, "rotating")
    assert made["key"] != turned["key"]
    assert opens(home, made["key"])
    assert opens(home, turned["key"])
    assert not opens(home, made["key"], after_s=3605)
    assert opens(home, turned["key"], after_s=3605)
    last = done("rotate", made["id"], "--overlap", "0s")
    assert [opens(home, each["key"]) for each in (made, turned, last)] == [False, False, True]


def test_a_revoked_key_opens_nothing_and_the_file_stays(home: Path) -> None:
    """By name or id; without the last one nobody gets in, which the command says."""
    first, second = (done("add", name, "--scope", "predict") for name in ("first", "second"))
    run("rotate", "first")
    assert done("revoke", "first")["revoked"]["id"] == first["id"]
    assert not opens(home, first["key"])
    assert opens(home, second["key"])
    result = run("revoke", second["id"])
    assert result.exit_code == 0, result.output
    assert "nobody gets in" in " ".join(result.stderr.split())
    assert read_keys(home / "access.json") == ()
    assert done("list") == {"in_force": True, "keys": []}


def test_without_any_key_the_list_says_so() -> None:
    """And makes no file."""
    assert done("list") == {"in_force": False, "keys": []}
    assert "no keys are in force" in run("list").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "till", "--scope", "root"], "use predict, admin, metrics"),
        (["add", "till", "--scope", "predict", "--rate", "0"], "--rate 0"),
        (["add", "till", "--scope", "predict", "--rate", "nan"], "--rate nan"),
        (["add", "till", "--scope", "predict", "--concurrency", "0"], "--concurrency 0"),
        (["add", "till", "--scope", "predict", "--expires", "0d"], "--expires 0d"),
        (["add", "till", "--scope", "predict", "--expires", "soon"], "give for example 90d"),
        (["add", "a b", "--scope", "predict"], "not a name"),
        (["rotate", "nobody"], "no key 'nobody'"),
        (["rotate", "nobody", "--overlap", "1w"], "--overlap 1w"),
        (["revoke", "nobody"], "no key 'nobody'"),
    ],
)
def test_mistakes_end_in_one_line_and_change_nothing(home: Path, arguments: list[str], words: str) -> None:
    """Exit code 2, and no key."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not read_keys(home / "access.json")


def test_a_name_that_is_taken_is_refused() -> None:
    """Two keys of one name could not be told apart."""
    done("add", "till", "--scope", "predict")
    result = run("add", "till", "--scope", "admin")
    assert result.exit_code == 2
    assert "rotate it" in result.stderr


def test_keys_can_be_made_before_a_service_may_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the settings of a service beyond loopback, which without keys would not start."""
    monkeypatch.setenv("STEELYARD_HOST", "0.0.0.0")  # noqa: S104
    monkeypatch.setenv("STEELYARD_ACCESS_FILE", str(home.parent / "elsewhere" / "keys.json"))
    done("add", "till", "--scope", "predict")
    assert read_keys(home.parent / "elsewhere" / "keys.json")
