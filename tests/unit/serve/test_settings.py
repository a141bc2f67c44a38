"""Settings: read when asked, refused when they contradict each other, documented one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import SettingsError
from serve.settings import SECRETS, Settings, is_loopback, load_settings, to_environment, without_secrets

README = Path(__file__).parents[3] / "README.md"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"models": ""}, "name at least one model"),
        ({"models": "a,a"}, "name each once"),
        ({"min_replicas": 2}, "set both or neither"),
        ({"min_replicas": 3, "max_replicas": 2}, "swap them"),
        ({"host": "0.0.0.0", "admin_key": "k", "allow_fault_injection": True}, "for tests on loopback"),  # noqa: S104
        ({"port": 0}, "STEELYARD_PORT"),
        ({"latency_objective_s": 5.0, "request_timeout_s": 5.0}, "no request lasts so long"),
        ({"memory_budget_mb": 1}, "STEELYARD_MEMORY_BUDGET_MB"),
        ({"quality_tolerance": -0.1}, "STEELYARD_QUALITY_TOLERANCE"),
        ({"latency_factor": 0.5}, "STEELYARD_LATENCY_FACTOR"),
        ({"strict_isolation_s": 1.0}, "STEELYARD_STRICT_ISOLATION_S"),
        ({"strict_isolation_s": 30.0, "prepare_timeout_s": 20.0}, "lower it"),
        ({"trace_ratio": 0.1}, "set trace_endpoint"),
        ({"trace_ratio": 1.1, "trace_endpoint": "http://c:4318"}, "STEELYARD_TRACE_RATIO"),
        ({"trace_endpoint": "collector:4318"}, "write it as http://collector:4318"),
        ({"trace_endpoint": "grpc://collector:4317"}, "write it as http://collector:4318"),
        ({"trace_endpoint": "http://me:secret@collector:4318"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"trace_endpoint": "http://collector:4318/?token=secret"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"access_log": "none"}, "STEELYARD_ACCESS_LOG"),
    ],
)
def test_an_illegal_combination_is_refused_in_one_sentence(overrides: dict[str, Any], words: str) -> None:
    """The error names the setting or says what to do, on one line."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**overrides)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_environment_is_read_when_an_instance_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable set after the import counts, and an explicit override wins over it."""
    monkeypatch.setenv("STEELYARD_PORT", "8123")
    monkeypatch.setenv("STEELYARD_MODELS", "checkout, street")
    assert load_settings().port == 8123
    assert load_settings().models == ("checkout", "street")
    assert load_settings(port=9000).port == 9000


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What ``to_environment`` writes gives back every value, the secret and the list included."""
    settings = load_settings(
        home=tmp_path,
        models=("a", "b"),
        admin_key="secret",
        replicas=2,
        cpus=0.5,
        allow_fault_injection=True,
        access_file=tmp_path / "keys.json",
        anonymous_predict=True,
    )
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("x", False)],
)
def test_loopback_is_recognised(host: str, *, expected: bool) -> None:
    """Addresses of this machine only are loopback; a name that could be anything is not."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    """Each field has a docstring, and the README's table shows its default and that docstring."""
    field = Settings.model_fields[name]
    assert field.description
    default = field.default
    shown = "unset" if default is None else f"`{','.join(default) if isinstance(default, tuple) else default}`"
    assert f"| `{name}` | {shown} | {field.description} |" in README.read_text(encoding="utf-8")


def test_every_secret_is_taken_out(tmp_path: Path) -> None:
    """A setting that hides its value is one that nothing may write down."""
    secrets = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secrets == SECRETS
    bare = without_secrets(load_settings(home=tmp_path, **dict.fromkeys(SECRETS, "s3cret")))
    assert "s3cret" not in str(to_environment(bare))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c/", "https://c/v1/traces"),
        ("http://c:4318/otlp/traces", "http://c:4318/otlp/traces"),
    ],
)
def test_a_collectors_url_gets_the_standard_path(given: str, used: str) -> None:
    """Unless it names one; a child process reads the same."""
    settings = load_settings(trace_endpoint=given, trace_ratio=0.5)
    assert settings.trace_endpoint == used
    assert load_settings(trace_endpoint=used).trace_endpoint == used
