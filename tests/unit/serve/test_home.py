"""The home folder of a service."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.errors import SettingsError
from serve.home import (
    KEPT_LOGS,
    ServiceRecord,
    new_log_folder,
    only_service,
    read_record,
    remember_folder,
    remembered_folder,
    remove_record,
    write_record,
)


def test_a_second_service_is_told_where_the_first_runs(tmp_path: Path) -> None:
    """Starting twice with one home gives one line that names the running service."""
    home = tmp_path / "deep" / "home"
    with only_service(home):
        write_record(home, ServiceRecord("http://127.0.0.1:8000", 4711))
        with pytest.raises(SettingsError, match=r"already on http://127.0.0.1:8000 \(process 4711\): stop it first"):
            only_service(home).__enter__()
    with only_service(home):
        pass


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A file in the way gives one line that says what to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="set STEELYARD_HOME"):
        only_service(tmp_path / "file" / "home").__enter__()


def test_the_record_is_the_owners_alone_and_comes_back(tmp_path: Path) -> None:
    """Other commands read url and pid; other users read nothing."""
    write_record(tmp_path, ServiceRecord("http://127.0.0.1:8000", 12))
    file = tmp_path / "service.json"
    assert json.loads(file.read_text()) == {"url": "http://127.0.0.1:8000", "pid": 12}
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_record(tmp_path) == ServiceRecord("http://127.0.0.1:8000", 12)
    remove_record(tmp_path)
    remove_record(tmp_path)
    assert read_record(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": "x"}', '{"url": "x", "pid": "y"}'])
def test_a_record_that_makes_no_sense_counts_as_none(tmp_path: Path, content: str) -> None:
    """A half-written or foreign file never breaks a command."""
    (tmp_path / "service.json").write_text(content)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("content", [None, "", "relative/folder"])
def test_no_folder_is_remembered_where_none_is_named(tmp_path: Path, content: str | None) -> None:
    """Only an absolute path is ever cleared up."""
    if content is not None:
        (tmp_path / "service.folder").write_text(content)
    assert remembered_folder(tmp_path) is None


def test_the_folder_of_a_start_is_remembered(tmp_path: Path) -> None:
    """A later start finds what a sudden death left behind."""
    remember_folder(tmp_path, tmp_path / "steelyard-x")
    assert remembered_folder(tmp_path) == tmp_path / "steelyard-x"


def test_only_the_last_logs_are_kept(tmp_path: Path) -> None:
    """The home folder does not grow with every start."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    made = [new_log_folder(tmp_path, begin + timedelta(minutes=minute)) for minute in range(KEPT_LOGS + 3)]
    assert sorted((tmp_path / "logs").iterdir()) == made[-KEPT_LOGS:]
