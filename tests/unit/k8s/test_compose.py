"""compose.yaml gives up what it can, and a file that is wrong in any way is refused."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from checks import compose, findings
from k8s_folder import K8S, replace

MLFLOW_SKINNY = "mlflow-skinny=="


def test_own_file_is_sound() -> None:
    """Neither the specification's schema nor our own rules find anything."""
    assert compose.check_compose(K8S / "compose.yaml").errors == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("mem_limit: 6g", "mem_limits: 6g"), ("interval: 10s", "intervall: 10s"), ("ports: [", "ports: 8000 #")],
)
def test_what_the_schema_refuses_is_an_error(folder: Path, old: str, new: str) -> None:
    """A field that the specification does not know, and one of another type, are found."""
    replace(folder / "compose.yaml", old, new)
    command = findings.find_tool("check-jsonschema")
    if command is None:
        pytest.skip("check-jsonschema is not installed here")

    found = findings.judge_tool([command, "--builtin-schema", compose.SCHEMA, str(folder / "compose.yaml")], "compose")
    assert found.errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("  read_only: true\n", ""), "read_only"),
        (("cap_drop: [ALL]", "cap_drop: [NET_RAW]"), "cap_drop"),
        (("security_opt: [", "x-security: ["), "security_opt"),
        (("    pids_limit: 4096\n", ""), "pids_limit"),
        (("127.0.0.1:3000:3000", "3000:3000"), "not on loopback"),
        (("POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password", "POSTGRES_PASSWORD: abc"), "written down"),
        (("secrets: [grafana_password]", "secrets: [grafana]"), "secrets has no grafana"),
        (("networks: [store]", "networks: [stores]"), "networks has no stores"),
        (("objects:/data", "things:/data"), "volumes has no things"),
        (("./monitoring/alerts.yaml:", "./monitoring/alert.yaml:"), "which is not there"),
        (("healthcheck:\n      test: [CMD, pg_isready", "x-check:\n      test: [CMD, pg_isready"), "whose health"),
    ],
)
def test_what_the_schema_does_not_see_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], words: str
) -> None:
    """Rights that stay, ports beyond loopback, secrets in the open and names of nothing are found."""
    monkeypatch.setattr(compose, "find_tool", lambda _: None)
    replace(folder / "compose.yaml", *change)

    assert any(words in error for error in compose.check_compose(folder / "compose.yaml").errors)


def test_the_servers_mlflow_is_the_clients() -> None:
    """The registry's image has the version of the client in the lock, here and on a cluster."""
    lock = (K8S.parent / "requirements.lock").read_text(encoding="utf-8").splitlines()
    version = next(line.split()[0].removeprefix(MLFLOW_SKINNY) for line in lock if line.startswith(MLFLOW_SKINNY))

    for file in ("compose.yaml", "base/mlflow.yaml"):
        assert f"ghcr.io/mlflow/mlflow:v{version}-full" in (K8S / file).read_text(encoding="utf-8")


def test_the_service_runs_the_images_own_command() -> None:
    """What the rehearsal of the image has shown holds for compose: nothing replaces the command."""
    service = yaml.safe_load((K8S / "compose.yaml").read_text(encoding="utf-8"))["services"]["steelyard"]

    assert not {"command", "entrypoint", "user"} & service.keys()
    assert [service["image"].partition(":")[0], service["build"]["target"]] == ["steelyard", "cpu"]


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """The script writes every secret that compose names but the scraper's key, and never over one that is there."""
    folder = tmp_path / "secrets"
    subprocess.run([K8S / "make_secrets.sh", folder], check=True, capture_output=True, timeout=30)
    first = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "grafana_password").unlink()
    subprocess.run([K8S / "make_secrets.sh", folder], check=True, capture_output=True, timeout=30)
    second = {path.name: path.read_text() for path in folder.iterdir()}

    named = yaml.safe_load((K8S / "compose.yaml").read_text(encoding="utf-8"))["secrets"].values()
    assert set(first) == {Path(each["file"]).name for each in named} - {"metrics_key"}
    assert {name for name in first if first[name] != second[name]} == {"grafana_password"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = yaml.safe_load(first["object_store.json"])["identities"][0]["credentials"][0]
    assert f"aws_secret_access_key = {keys['secretKey']}" in first["bucket_credentials"]
    assert len(first["postgres_password"]) == 48
