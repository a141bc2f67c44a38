"""A start beyond loopback: somebody may detect, somebody may promote, and neither by oversight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from models.errors import SettingsError
from serve.access import Scope, issue
from serve.access_document import render
from serve.access_start import check_start
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

NOW = 1000.0
ANY = "0.0.0.0"  # noqa: S104 - the address that must be refused


def start(home: Path, *scopes: Collection[Scope], now: float = NOW, **settings: Any) -> None:
    """Check a start with a key for each of ``scopes``, which live a minute."""
    if scopes:
        keys = [issue(f"key-{number}", each, NOW, lifetime_s=60.0)[0] for number, each in enumerate(scopes)]
        (home / "access.json").write_bytes(render(keys))
    check_start(Settings(home=home, **settings), now)


@pytest.mark.parametrize(
    ("scopes", "settings"),
    [
        ([], {}),
        ([], {"host": "::1"}),
        ([{Scope.METRICS}], {}),
        ([{Scope.PREDICT, Scope.ADMIN}], {"host": ANY}),
        ([{Scope.PREDICT}, {Scope.ADMIN}], {"host": ANY}),
        ([{Scope.PREDICT}], {"host": ANY, "admin_key": "k"}),
        ([{Scope.ADMIN}], {"host": ANY, "anonymous_predict": True}),
        ([], {"host": ANY, "anonymous_predict": True, "admin_key": "k"}),
        ([{Scope.PREDICT, Scope.ADMIN}], {"host": "192.0.2.7"}),
    ],
)
def test_a_start_that_somebody_thought_of(
    tmp_path: Path, scopes: list[Collection[Scope]], settings: dict[str, Any]
) -> None:
    """Loopback, or keys for both, or the settings that say so."""
    start(tmp_path, *scopes, **settings)


@pytest.mark.parametrize(
    ("scopes", "settings", "words"),
    [
        ([], {"host": ANY}, "steelyard access add NAME --scope predict"),
        ([], {"host": ANY, "admin_key": "k"}, "STEELYARD_ANONYMOUS_PREDICT=true"),
        ([{Scope.ADMIN}], {"host": "192.0.2.7"}, "--scope predict"),
        ([{Scope.PREDICT}], {"host": ANY}, "steelyard access add NAME --scope admin"),
        ([{Scope.PREDICT}], {"host": ANY}, "STEELYARD_ADMIN_KEY"),
        ([], {"host": ANY, "anonymous_predict": True}, "--scope admin"),
        ([{Scope.METRICS}], {"host": ANY, "admin_key": "k"}, "bind 127.0.0.1"),
        ([], {"access_file": "nowhere/access.json"}, "does not exist"),
    ],
)
def test_a_start_by_oversight_is_refused(
    tmp_path: Path, scopes: list[Collection[Scope]], settings: dict[str, Any], words: str
) -> None:
    """In one sentence that names the command to run."""
    with pytest.raises(SettingsError) as refused:
        start(tmp_path, *scopes, **settings)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_keys_that_have_expired_count_as_none(tmp_path: Path) -> None:
    """They would let nobody in."""
    with pytest.raises(SettingsError, match="no key may detect"):
        start(tmp_path, {Scope.PREDICT, Scope.ADMIN}, host=ANY, now=NOW + 60.0)


def test_a_damaged_file_is_refused_on_loopback_too(tmp_path: Path) -> None:
    """Somebody wanted keys."""
    (tmp_path / "access.json").write_bytes(b"{")
    with pytest.raises(SettingsError, match="damaged"):
        start(tmp_path)
