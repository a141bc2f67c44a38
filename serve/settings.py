"""Every knob of the service: one class, one docstring a field, illegal combinations refused at start."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.errors import SettingsError

SECRETS: Final = frozenset({"admin_key", "webhook_secret"})
"""Settings that each process reads from its own environment and nothing writes down."""


class Settings(BaseSettings):
    """Settings of one service. Each is read from ``STEELYARD_<NAME>`` when an instance is made, never at import."""

    model_config = SettingsConfigDict(
        env_prefix="STEELYARD_", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    home: Path = Path(".steelyard")
    """Folder of all state: registry, artifact store, release cache, logs."""

    host: str = "127.0.0.1"
    """Address the service listens on. Other than loopback needs API keys, or anonymous_predict and an admin key."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the HTTP API."""

    models: Annotated[tuple[str, ...], NoDecode] = ("checkout",)
    """Names of the models to serve, comma-separated; the first answers ``/v1/detect``."""

    registry_uri: str | None = None
    """MLflow tracking URI; unset means SQLite inside the home folder."""

    replicas: int = Field(default=1, ge=1, le=1024)
    """Number of replicas when autoscaling is off."""

    min_replicas: int | None = Field(default=None, ge=1, le=1024)
    """Fewest replicas under autoscaling; give it together with max_replicas."""

    max_replicas: int | None = Field(default=None, ge=1, le=1024)
    """Most replicas under autoscaling; give it together with min_replicas."""

    latency_objective_s: float = Field(default=0.5, gt=0.0, le=60.0)
    """Time within which 99 of 100 images should be answered (seconds): autoscaling orders replicas for it."""

    scale_down_after_s: float = Field(default=120.0, ge=1.0, le=86_400.0)
    """Time for which fewer replicas must have been enough before autoscaling takes any away (seconds)."""

    gpus: float = Field(default=0.0, ge=0.0, le=16.0)
    """GPUs a replica reserves; a fraction shares one. 0 serves on the CPU."""

    cpus: float | None = Field(default=None, gt=0.0, le=256.0)
    """CPU cores a replica reserves and may use with all its threads; unset shares the machine's cores out."""

    backend: Literal["auto", "openvino", "onnxruntime", "torch", "fake"] = "auto"
    """Runtime of the detector; ``auto`` takes OpenVINO on x86 CPUs and ONNX Runtime elsewhere and on GPUs."""

    fake_service_s: float = Field(default=0.0, ge=0.0, le=60.0)
    """Time that the fake backend takes for a call (seconds), for measurements of what is around the detector."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the runtime; ``auto`` takes bf16 where the CPU has it, and fp16 on GPUs under TensorRT or torch."""

    lanes: int | None = Field(default=None, ge=1, le=64)
    """Runtime calls in flight at once; unset lets the warm-up measure it."""

    max_batch: int | None = Field(default=None, ge=1, le=256)
    """Most images in one runtime call; unset lets the warm-up measure it."""

    max_queue: int = Field(default=256, ge=1, le=100_000)
    """Images that may wait in one replica; more are refused with 429."""

    request_timeout_s: float = Field(default=30.0, gt=0.0, le=600.0)
    """Longest time one request may take, queueing included (seconds)."""

    max_body_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)
    """Largest request body accepted (bytes)."""

    max_images: int = Field(default=16, ge=1, le=256)
    """Most images in one request."""

    max_pixels: int = Field(default=64_000_000, ge=1)
    """Largest image accepted (width x height in pixels), checked before any pixel is decoded."""

    max_side: int = Field(default=16_384, ge=32)
    """Longest image side accepted (pixels)."""

    memory_budget_mb: int = Field(default=1500, ge=256)
    """Memory (MiB) of a replica, by estimate: past it a release is refused, and shapes give way to one another."""

    decode_budget_mb: int = Field(default=256, ge=16)
    """Memory (MiB) for the images that a replica decodes at once; a single one may take 280 even where this is less."""

    poll_interval_s: float = Field(default=5.0, ge=0.1, le=3600.0)
    """Mean time between two reads of the production alias (seconds, jittered by a fifth)."""

    hold_deadline_s: float = Field(default=0.5, ge=0.05, le=5.0)
    """Longest time a replica holds its batches for a commit before it asks the ledger (seconds)."""

    in_doubt_limit_s: float = Field(default=5.0, ge=0.1, le=60.0)
    """Time without a reachable ledger during a hold after which a replica answers 503 (seconds)."""

    strict_isolation_s: float | None = Field(default=None, ge=3.0, le=300.0)
    """Strict mode: time without the ledger's word that a replica is counted, after which it answers 503 (seconds)."""

    prepare_timeout_s: float = Field(default=120.0, ge=1.0, le=3600.0)
    """Longest time a replica may take to load, warm and test a release (seconds)."""

    quality_tolerance: float = Field(default=0.003, ge=0.0, le=1.0)
    """Most mAP50-95 (0 to 1) that a promoted version may lose against the serving one on the same data."""

    latency_factor: float = Field(default=2.0, ge=1.0, le=100.0)
    """Most times as long as the serving version that a promoted one may take for a golden image."""

    trial_images: int = Field(default=50, ge=1, le=1_000_000)
    """Fewest live images of a version that each shadow or canary step, and each comparison on probation, rests on."""

    probation_s: float = Field(default=600.0, ge=0.0, le=604_800.0)
    """Time after a commit in which a breach brings the version before back by itself (seconds); 0 for none."""

    admin_key: SecretStr | None = None
    """Key with the scope ``admin``, beside those of the access file."""

    access_file: Path | None = None
    """File of the API keys, such as a mounted Secret; unset means ``access.json`` in the home folder."""

    anonymous_predict: bool = False
    """Lets everybody who reaches the service detect; promoting and metrics need keys beyond loopback still."""

    webhook_secret: SecretStr | None = Field(default=None, min_length=1)
    """Secret of MLflow's webhooks, which ``POST /v1/hooks/mlflow`` checks; unset, there is no such route."""

    allow_fault_injection: bool = False
    """Lets tests arm the named fault points of the rollout; refused when not bound to loopback."""

    keys: Path | None = None
    """Folder of the keys that versions may be signed with; unset means ``keys`` in the home folder."""

    require_signed: bool = False
    """Refuse versions that no trusted key has signed."""

    keep_versions: int = Field(default=10, ge=1, le=100_000)
    """Newest versions of a model that pruning keeps, in the registry and in the cache, beside those in use."""

    keep_days: float = Field(default=7.0, ge=0.0, le=36_500.0)
    """Age below which pruning keeps a version, however many there are (days)."""

    idle_check_s: float = Field(default=60.0, ge=1.0, le=3600.0)
    """Time without a request after which a replica proves on a golden image that it still sees (seconds)."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""

    access_log: Literal["errors", "sampled", "all"] = "errors"
    """Requests that get a log line: 5xx and slow ones; also one of a hundred and those that are traced; or all."""

    trace_endpoint: str | None = None
    """URL of an OpenTelemetry collector (OTLP/HTTP, ``/v1/traces`` unless it names a path); unset traces nothing."""

    trace_ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the requests that is traced (0 to 1), beside those whose caller's ``traceparent`` asks for it."""

    @field_validator("keys")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        # Or every process would find another folder below its own working folder.
        return None if value is None else value.expanduser().absolute()

    @field_validator("trace_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        url = urlsplit(value)
        if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:
            msg = "this is no URL of a collector: write it as http://collector:4318"
            raise ValueError(msg)
        if url.username is not None or url.password is not None or url.query or url.fragment:
            msg = "a collector's URL holds no secret and no query: send its token by OTEL_EXPORTER_OTLP_HEADERS"
            raise ValueError(msg)
        return value if url.path.strip("/") else f"{value.rstrip('/')}/v1/traces"

    @field_validator("models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _refuse_illegal_combinations(self) -> Self:
        if not self.models:
            msg = "models is empty: name at least one model to serve"
            raise ValueError(msg)
        if len(set(self.models)) != len(self.models):
            msg = "models names one model twice: name each once"
            raise ValueError(msg)
        if (self.min_replicas is None) != (self.max_replicas is None):
            msg = "min_replicas and max_replicas go together: set both or neither"
            raise ValueError(msg)
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            msg = f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}: swap them"
            raise ValueError(msg)
        if self.latency_objective_s >= self.request_timeout_s:
            msg = (
                f"latency_objective_s={self.latency_objective_s:g} is not below request_timeout_s="
                f"{self.request_timeout_s:g}: no request lasts so long; lower it"
            )
            raise ValueError(msg)
        if self.strict_isolation_s is not None and self.strict_isolation_s >= self.prepare_timeout_s:
            msg = (
                f"strict_isolation_s={self.strict_isolation_s:g} is not below prepare_timeout_s="
                f"{self.prepare_timeout_s:g}: no promotion would outlast the wait for a dead replica; lower it"
            )
            raise ValueError(msg)
        if self.trace_ratio > 0.0 and self.trace_endpoint is None:
            msg = f"trace_ratio={self.trace_ratio:g} has no collector to send to: set trace_endpoint, or leave it out"
            raise ValueError(msg)
        if not is_loopback(self.host) and self.allow_fault_injection:
            msg = "allow_fault_injection is for tests on loopback only: unset it"
            raise ValueError(msg)
        return self

    @property
    def root(self) -> Path:
        """Return the absolute home folder."""
        return self.home.expanduser().absolute()

    @property
    def access_path(self) -> Path:
        """Return the absolute path of the access file."""
        return self.root / "access.json" if self.access_file is None else self.access_file.expanduser().absolute()

    @property
    def tracking_uri(self) -> str:
        """Return the MLflow URI in force: the given one, else SQLite inside the home folder."""
        return self.registry_uri or f"sqlite:///{self.root / 'registry' / 'mlflow.db'}"

    @property
    def keys_folder(self) -> Path:
        """Return the folder of trusted keys, outside the registry."""
        return self.keys or self.root / "keys"

    @property
    def cache(self) -> Path:
        """Return the folder of the content-addressed release cache."""
        return self.root / "cache"


def without_secrets(settings: Settings) -> Settings:
    """Return the settings for a process that needs no secret: Ray keeps what it is made with."""
    return settings.model_copy(update=dict.fromkeys(SECRETS))


def is_loopback(host: str) -> bool:
    """Return whether ``host`` names this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: object) -> Settings:
    """Read the environment now and return the settings; ``overrides`` win. Raises SettingsError in one sentence."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        setting = f"STEELYARD_{where.upper()}: " if where else ""
        msg = f"{setting}{first['msg'].removeprefix('Value error, ')}"
        raise SettingsError(msg) from None


def to_environment(settings: Settings) -> dict[str, str]:
    """Return ``STEELYARD_*`` variables from which a child process reads the same settings."""
    environment: dict[str, str] = {}
    for name, value in settings:
        if value is None:
            continue
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        text = ",".join(text) if isinstance(text, tuple) else text
        # A child may have another working folder.
        places = {"home": settings.root, "access_file": settings.access_path}
        environment[f"STEELYARD_{name.upper()}"] = str(places.get(name, text))
    return environment


def available_cores() -> int:
    """Return the number of CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
