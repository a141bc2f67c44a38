"""The composition root: settings become options of the one deployment."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import SettingsError
from serve.app import app, build_application
from serve.settings import Settings


def deployment(settings: Settings, **arguments: Any) -> Any:
    """Return the deployment that is built for ``settings`` on two cores."""
    return build_application(settings, cores=2, **arguments)._bound_deployment


def test_replicas_share_the_machine() -> None:
    """Two replicas on two cores reserve one each and use one thread each."""
    made = deployment(Settings(replicas=2))
    assert made.num_replicas == 2
    assert made.ray_actor_options["num_cpus"] == 1.0
    settings, threads, logs = made.init_args
    assert (threads, logs) == (1, None)
    assert Settings(**settings) == Settings(replicas=2, home=Settings().root)


def test_the_home_is_absolute_before_it_leaves_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process has a working folder of its own, and all must find the same home."""
    monkeypatch.chdir(tmp_path)
    settings, _, _ = deployment(Settings(home=Path("state"))).init_args
    assert settings["home"] == str(tmp_path / "state")


def test_secrets_are_not_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a deployment's arguments in its store; a replica reads secrets from its own environment."""
    settings, _, _ = deployment(Settings(admin_key="s3cret", webhook_secret="s3cret", host="0.0.0.0")).init_args  # noqa: S104, S106
    assert "s3cret" not in repr(settings)
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "s3cret")
    key = Settings(**settings).admin_key
    assert key is not None
    assert key.get_secret_value() == "s3cret"


def test_gpus_are_reserved_as_asked() -> None:
    """A fraction shares one GPU; nothing asks the machine whether there is any."""
    assert deployment(Settings(gpus=0.5)).ray_actor_options["num_gpus"] == 0.5


def test_autoscaling_replaces_the_number_of_replicas() -> None:
    """Bounds make Ray Serve choose the number between them."""
    made = deployment(Settings(min_replicas=1, max_replicas=3))
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)


def test_ray_never_queues_before_the_engine() -> None:
    """Refusing is the engine's business: its 429 tells when to come back."""
    made = deployment(Settings(max_queue=100_000))
    assert made.max_ongoing_requests >= 100_000


def test_logs_go_where_the_start_says(tmp_path: Path) -> None:
    """Access logs are off, the rest is JSON in the given folder."""
    made = deployment(Settings(), logs=tmp_path, start_attempts=3)
    logging = made._deployment_config.logging_config
    assert logging["logs_dir"] == str(tmp_path)
    assert logging["enable_access_log"] is False
    assert made._deployment_config.max_constructor_retry_count == 3


def test_the_builder_reads_the_environment_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments of ``serve run`` win over the environment, and an illegal one is refused in a sentence."""
    monkeypatch.setenv("STEELYARD_REPLICAS", "3")
    monkeypatch.setenv("STEELYARD_CPUS", "0.5")
    assert app({})._bound_deployment.num_replicas == 3
    assert app({"replicas": "1"})._bound_deployment.num_replicas == 1
    with pytest.raises(SettingsError, match="STEELYARD_REPLICAS"):
        app({"replicas": "none"})
