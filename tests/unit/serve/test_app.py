"""The composition root: settings become options of the one deployment."""

from pathlib import Path
from typing import Any

import pytest

from models.errors import SettingsError
from serve.access import Scope, issue
from serve.access_document import render
from serve.access_file import keys_demanded
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
    settings, threads, logs, local = made.init_args
    assert (threads, logs, local) == (1, None, None)
    assert Settings(**settings) == Settings(replicas=2, home=Settings().root)


def test_the_home_is_absolute_before_it_leaves_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process has a working folder of its own, and all must find the same home."""
    monkeypatch.chdir(tmp_path)
    settings, *_ = deployment(Settings(home=Path("state"))).init_args
    assert settings["home"] == str(tmp_path / "state")


def test_secrets_are_not_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps a deployment's arguments in its store; a replica reads secrets from its own environment."""
    settings, *_ = deployment(Settings(admin_key="s3cret", webhook_secret="s3cret", host="0.0.0.0")).init_args  # noqa: S104, S106
    assert "s3cret" not in repr(settings)
    monkeypatch.setenv("STEELYARD_ADMIN_KEY", "s3cret")
    key = Settings(**settings).admin_key
    assert key is not None
    assert key.get_secret_value() == "s3cret"


def test_a_cluster_is_refused_without_keys_beyond_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The builder that Kubernetes calls says so before anything is deployed."""
    monkeypatch.setenv("STEELYARD_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="steelyard access add"):
        app({"host": "0.0.0.0", "cpus": "1"})  # noqa: S104
    key, _ = issue("all", set(Scope), 0.0)
    (tmp_path / "access.json").write_bytes(render([key]))
    assert app({"host": "0.0.0.0", "cpus": "1"}) is not None  # noqa: S104


def test_a_replica_knows_that_there_was_an_access_file(tmp_path: Path) -> None:
    """So that one which starts while the file is gone opens nothing; where there never was one, none is demanded."""
    settings, *_ = deployment(Settings(home=tmp_path)).init_args
    assert not keys_demanded(Settings(**settings))
    (tmp_path / "access.json").write_bytes(render([]))
    settings, *_ = deployment(Settings(home=tmp_path)).init_args
    assert keys_demanded(Settings(**settings))
    assert Settings(**settings).access_path == tmp_path / "access.json"


def test_of_the_launcher_s_key_ray_gets_the_digest(tmp_path: Path) -> None:
    """Ray keeps a deployment's arguments."""
    key, text = issue("local", set(Scope), 0.0, key_id="local")
    arguments = deployment(Settings(home=tmp_path), local=key).init_args
    assert arguments[-1] == ("local", key.digest.hex())
    assert text.rpartition("_")[2] not in repr(arguments)


def test_gpus_are_reserved_as_asked() -> None:
    """A fraction shares one GPU; nothing asks the machine whether there is any."""
    assert deployment(Settings(gpus=0.5)).ray_actor_options["num_gpus"] == 0.5


def test_autoscaling_replaces_the_number_of_replicas() -> None:
    """Bounds make Ray Serve ask our policy for a number between them, by what the settings say."""
    settings = Settings(min_replicas=1, max_replicas=3, latency_objective_s=0.2, scale_down_after_s=60.0, max_queue=99)
    scaling = deployment(settings)._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert scaling.policy.policy_function == "serve.autoscaling:QueuePolicy"
    assert scaling.policy.policy_kwargs == {"objective_s": 0.2, "most_waiting": 99, "quiet_s": 60.0}


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
