"""The home folder of a service."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.errors import SettingsError
from serve.home import (
    FORMAT,
    FORMAT_FILE,
    KEPT_LOGS,
    ServiceRecord,
    bring_up_to_date,
    check_format,
    claim_home,
    new_log_folder,
    only_service,
    read_format,
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
    assert json.loads(file.read_text()) == {"url": "http://127.0.0.1:8000", "pid": 12, "key": None}
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_record(tmp_path) == ServiceRecord("http://127.0.0.1:8000", 12)
    write_record(tmp_path, ServiceRecord("http://127.0.0.1:8000", 12, "sy_local_s3cret"))
    record = read_record(tmp_path)
    assert record == ServiceRecord("http://127.0.0.1:8000", 12, "sy_local_s3cret")
    assert "s3cret" not in repr(record)
    assert file.stat().st_mode & 0o777 == 0o600
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


def fill(home: Path) -> Path:
    """Make a home as releases left it that wrote no number."""
    (home / "registry").mkdir(parents=True)
    return home


def note(home: Path, content: str) -> Path:
    """Write the note of the format."""
    home.mkdir(parents=True, exist_ok=True)
    (home / FORMAT_FILE).write_text(content)
    return home


@pytest.mark.parametrize("make", [lambda home: home, fill, lambda home: note(home, '{"format": 1}')])
def test_starting_a_service_notes_the_format(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """In a new home, in one of a release that wrote no number, and in one that has it already."""
    home = make(tmp_path / "home")
    with only_service(home):
        assert read_format(home) == FORMAT
        assert sorted(path.name for path in home.iterdir() if path.name.startswith("home.json")) == ["home.json"]


def test_a_newer_home_is_refused_and_left_alone(tmp_path: Path) -> None:
    """One line that names both numbers; neither a service nor a command touches it."""
    home = note(fill(tmp_path / "home"), '{"format": 7, "release": "9.0"}')
    before = (home / FORMAT_FILE).read_bytes()
    for attempt in (lambda: only_service(home).__enter__(), lambda: check_format(home), lambda: claim_home(home)):
        with pytest.raises(
            SettingsError, match=r"newer release of Steelyard \(format 7, this one knows 1\)"
        ) as refused:
            attempt()
        assert "\n" not in str(refused.value)
    assert (home / FORMAT_FILE).read_bytes() == before
    note(home, '{"format": 1}')
    with only_service(home):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "1"}', '{"format": 0}', '{"format": true}', "1"])
def test_a_note_that_makes_no_sense_is_refused(tmp_path: Path, content: str) -> None:
    """Guessing could migrate a home that needs none."""
    home = note(tmp_path / "home", content)
    with pytest.raises(SettingsError, match="names no format"):
        only_service(home).__enter__()


def test_an_older_home_is_migrated_step_by_step(tmp_path: Path) -> None:
    """Each step once, and the number after each: a crash in the middle goes on where it stopped."""
    home = fill(tmp_path / "home")
    done: list[int] = []

    def second(_home: Path) -> None:
        """Fail as a full disk does, the first time."""
        done.append(2)
        if done.count(2) == 1:
            raise OSError(28, "No space left on device")

    migrations = {1: lambda _home: done.append(1), 2: second, 3: lambda _home: done.append(3)}
    with pytest.raises(OSError, match="No space"):
        bring_up_to_date(home, newest=4, migrations=migrations)
    assert read_format(home) == 2
    bring_up_to_date(home, newest=4, migrations=migrations)
    bring_up_to_date(home, newest=4, migrations=migrations)
    assert done == [1, 2, 2, 3]
    assert read_format(home) == 4


def test_a_new_home_is_not_migrated(tmp_path: Path) -> None:
    """There is nothing in it."""
    bring_up_to_date(tmp_path, newest=3, migrations={})
    assert read_format(tmp_path) == 3


def test_a_home_too_old_is_refused(tmp_path: Path) -> None:
    """With what to do; its number stays."""
    note(fill(tmp_path / "home"), '{"format": 1}')
    with pytest.raises(SettingsError, match=r"format 1, .* to format 3: start a release in between"):
        bring_up_to_date(tmp_path / "home", newest=3, migrations={2: lambda _home: None})
    assert read_format(tmp_path / "home") == 1


def test_a_command_that_writes_notes_the_format_and_one_that_reads_does_not(tmp_path: Path) -> None:
    """Registering makes a home; looking at one that is not there makes none."""
    check_format(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    claim_home(tmp_path / "new")
    claim_home(tmp_path / "new")
    assert read_format(tmp_path / "new") == FORMAT
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="set STEELYARD_HOME"):
        claim_home(tmp_path / "file" / "home")
