"""Composition root: settings -> Ray Serve application. ``serve run serve.app:app`` starts it on any Ray cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from serve.access_start import check_start
from serve.autoscaling import autoscaling_options
from serve.deployment import DRAIN_LOOP_S, HEALTH_PERIOD_S, HEALTH_TIMEOUT_S, detector
from serve.settings import SECRETS, available_cores, load_settings
from serve.sizing import size_replica

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ray import serve

    from serve.access import AccessKey
    from serve.settings import Settings

MOST_ONGOING: Final = 100_000
"""Requests that Ray lets into a replica at once: never its limit, the engine refuses with 429 long before."""

LONGEST_DRAIN_S: Final = 30.0


def app(args: Mapping[str, str]) -> serve.Application:
    """Return the application for the environment's settings; ``args`` win over it.

    This is the builder of ``serve run serve.app:app replicas=2`` and of ``import_path: serve.app:app``. On a cluster
    set ``cpus``: unset, a replica takes its share of the cores of the machine on which the builder runs.

    args: names of settings to values. Raises SettingsError, also where the keys that there are do not do for the host.
    """
    settings = load_settings(**args)
    check_start(settings, time.time())
    return build_application(settings, cores=available_cores())


def build_application(
    settings: Settings,
    *,
    cores: int,
    logs: Path | None = None,
    start_attempts: int | None = None,
    local: AccessKey | None = None,
) -> serve.Application:
    """Return the application of ``settings``.

    cores: of the machine whose cores are shared out where the settings reserve none. logs: folder of the replicas' log
    files; None leaves them where Ray keeps them. start_attempts: failures of replicas to start after which Ray Serve
    gives up; None means Ray's default. local: a key that opens it beside those of the access file.
    """
    sizing = size_replica(settings, cores)
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": sizing.cpus, "num_gpus": settings.gpus},
        "max_ongoing_requests": MOST_ONGOING,
        "graceful_shutdown_timeout_s": min(settings.request_timeout_s, LONGEST_DRAIN_S),
        "graceful_shutdown_wait_loop_s": DRAIN_LOOP_S,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "logging_config": {
            "encoding": "JSON",
            "enable_access_log": False,
            "log_level": settings.log_level.upper(),
            **({"logs_dir": str(logs)} if logs else {}),
        },
    }
    if start_attempts is not None:
        options["max_constructor_retry_count"] = start_attempts
    if settings.min_replicas is not None and settings.max_replicas is not None:
        options["autoscaling_config"] = autoscaling_options(settings)
    else:
        options["num_replicas"] = settings.replicas
    # Absolute, or every process would find others below its own working folder.
    places = {"home": str(settings.root)}
    if settings.access_file is not None or settings.access_path.exists():
        # A replica that starts while the file is gone must not take it that there never was one.
        places["access_file"] = str(settings.access_path)
    return detector.options(**options).bind(
        settings.model_dump(mode="json", exclude=set(SECRETS)) | places,
        sizing.threads,
        str(logs) if logs else None,
        None if local is None else (local.key_id, local.digest.hex()),
    )
