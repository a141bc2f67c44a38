"""``steelyard keys`` and ``versions sign``: from a new key to a version that it vouches for."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from release_files import release_files
from typer.testing import CliRunner

from models.errors import SettingsError
from models.weights.fake_registry import FakeRegistry
from models.weights.keys import KeyFolder
from models.weights.manifest import ONNX
from models.weights.registry import DIGEST_TAG
from serve.commands.application import app
from serve.settings import Settings
from serve.trust import check_trust, described, rule_of, signer

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("STEELYARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STEELYARD_HOME", str(tmp_path / "home"))


@pytest.fixture(name="registry")
def _registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRegistry:
    """Return a registry with two versions of the model ``m``."""
    registry = FakeRegistry()
    for number in (1, 2):
        digest, files = release_files(number)
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        registry.create_version("m", folder, tags={DIGEST_TAG: digest}, metrics={})
    for module in ("weights", "versions"):
        monkeypatch.setattr(f"serve.commands.{module}.open_registry", lambda _settings, **_options: registry)
    return registry


def steelyard(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> dict[str, Any]:
    """Run it with --json and return what it prints."""
    done = steelyard(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_new_key_is_told_whole_and_its_private_half_never(tmp_path: Path) -> None:
    """Fingerprint and public line on stdout; another home trusts that line, or the file."""
    done = steelyard("keys", "new", "mine")
    assert done.exit_code == 0
    (row,) = printed("keys", "list")["keys"]
    assert {row["fingerprint"], row["public"], row["id"]} <= set(done.stdout.split())
    assert (row["trusted"], row["private"], row["signs"]) == (True, True, True)
    private = (tmp_path / "home" / "keys" / "mine.key").read_text()
    for line in private.splitlines()[1:-1]:
        assert line not in done.output + steelyard("keys", "list").output

    other = tmp_path / "other"
    assert printed("keys", "trust", row["public"], "--name", "theirs", "--home", other)["id"] == row["id"]
    assert [key["name"] for key in printed("keys", "list", "--home", other)["keys"]] == ["theirs"]
    third = tmp_path / "third"
    given = shutil.copy(tmp_path / "home" / "keys" / "mine.pub", tmp_path / "given.pub")
    assert printed("keys", "trust", given, "--home", third)["name"] == "given"
    assert not printed("keys", "list", "--home", third)["keys"][0]["private"]


def test_a_key_is_distrusted_by_name() -> None:
    """The command says who is left."""
    steelyard("keys", "new", "one")
    steelyard("keys", "new", "two")
    assert printed("keys", "distrust", "one")["trusted"] == ["two"]
    done = steelyard("keys", "distrust", "one")
    assert (done.exit_code, "no key named one" in done.stderr) == (2, True)
    assert "no key" in steelyard("keys", "distrust", "two").stdout


@pytest.mark.parametrize("given", ["text", "/nowhere/key.pub", "AAAA"])
def test_what_is_no_key_is_not_trusted(given: str, tmp_path: Path) -> None:
    """One line, exit code 2, and nothing is made."""
    done = steelyard("keys", "trust", given)
    assert (done.exit_code, "no Ed25519 public key" in done.stderr) == (2, True)
    assert not (tmp_path / "home").exists()


def test_an_old_version_is_signed_and_listed(registry: FakeRegistry, tmp_path: Path) -> None:
    """First it is not signed, then it is, and the audit says by whom."""
    assert [row["signature"] for row in printed("versions", "m")["versions"]] == ["unsigned", "unsigned"]
    done = steelyard("versions", "sign", "m", "2")
    assert (done.exit_code, "steelyard keys new" in done.stderr) == (2, True)
    key = printed("keys", "new", "mine")["id"]
    assert printed("versions", "sign", "m", "2")["signature"] == "trusted"
    rows = printed("versions", "m")["versions"]
    assert [(row["signature"], row["signed_by"]) for row in rows] == [("unsigned", None), ("trusted", key)]
    assert f"trusted {key}" in steelyard("versions", "m").stdout
    (line,) = (tmp_path / "home" / "audit" / "rollout.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["action"], entry["result"], entry["reason"]) == ("sign", "signed", f"mine (key {key})")
    registry.sign_version("m", "1", registry.version("m", "2").signature)
    assert printed("versions", "m")["versions"][0]["signature"] == "invalid"
    steelyard("keys", "distrust", "mine")
    assert {row["signature"] for row in printed("versions", "m")["versions"]} == {"untrusted"}
    shutil.rmtree(tmp_path / "home" / "keys")
    assert {row["signature"] for row in printed("versions", "m")["versions"]} == {"unchecked"}


def test_changed_files_are_not_vouched_for(registry: FakeRegistry) -> None:
    """Exit code 1 and the reason; no signature is written."""
    steelyard("keys", "new", "mine")
    registry.files["m", "1"][ONNX] = b"other"
    done = steelyard("versions", "sign", "m", "1")
    assert (done.exit_code, "instead of" in done.stderr) == (1, True)
    assert registry.version("m", "1").signature == ""


def test_a_model_named_sign_is_listed_by_list(registry: FakeRegistry) -> None:
    """As those named like the other subcommands are."""
    assert registry.models() == ["m"]
    assert steelyard("versions", "list", "m").exit_code == 0
    assert "sign" in steelyard("versions", "--help").output.split()


def test_demanding_signatures_without_a_key_is_refused_at_start(tmp_path: Path) -> None:
    """And a folder that is named but not there, which is a secret that is not mounted."""
    settings = Settings(home=tmp_path, require_signed=True)
    with pytest.raises(SettingsError, match=r"REQUIRE_SIGNED is set and no key is trusted"):
        check_trust(settings)
    KeyFolder(settings.keys_folder).new("mine")
    check_trust(settings)
    check_trust(Settings(home=tmp_path / "other"))
    with pytest.raises(SettingsError, match=r"STEELYARD_KEYS: the folder .* cannot be read"):
        check_trust(Settings(home=tmp_path, keys=tmp_path / "mounted"))


def test_the_keys_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is made absolute at once, for other processes have other working folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEELYARD_KEYS", "secret")
    settings = Settings()
    assert settings.keys_folder == tmp_path / "secret"
    assert signer(settings) is None
    steelyard("keys", "new", "mine")
    found = signer(settings)
    assert found is not None
    assert found[0] == "mine"
    assert not (tmp_path / "home" / "keys").exists()


def test_a_list_is_still_read_where_the_keys_cannot_be(tmp_path: Path, registry: FakeRegistry) -> None:
    """What a signature is worth is unknown then."""
    registry.sign_version("m", "1", "text")
    rule = rule_of(Settings(home=tmp_path, keys=tmp_path / "mounted"))
    assert described(rule, registry.version("m", "1")).standing == "unknown"
