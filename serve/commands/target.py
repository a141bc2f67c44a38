"""Where a command acts: on the running service over HTTP, or on the registry in the home folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import InvalidOptionError, UnknownModelError

if TYPE_CHECKING:
    from models.weights.registry import Registry
    from serve.client import SteelyardClient
    from serve.home import ServiceRecord
    from serve.settings import Settings


def read_settings(home: Path | None, **overrides: object) -> "Settings":
    """Return the settings of the environment with ``home`` and ``overrides`` on top. Raises SettingsError."""
    from serve.settings import load_settings

    return load_settings(home=home, **overrides)


def running_service(settings: "Settings") -> "ServiceRecord | None":
    """Return the record of the service that runs out of this home folder, or None.

    A record whose process has died is a leftover of a crash and counts as none.
    """
    import psutil

    from serve.home import read_record

    record = read_record(settings.root)
    return record if record is not None and record.pid > 0 and psutil.pid_exists(record.pid) else None


def connect(settings: "Settings", url: str | None, key: str | None) -> "SteelyardClient | None":
    """Return a client of the service at ``url``, else of the one that runs out of the home folder, else None.

    It sends ``key``; without one the key that the service of this home has left there, which goes nowhere else, or the
    admin key of the settings.
    """
    from serve.client import SteelyardClient

    record = None if url else running_service(settings)
    found = record.url if record is not None else url
    if not found:
        return None
    if not key and record is not None:
        key = record.key
    if not key and settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
    return SteelyardClient(found, key=key)


def default_url(settings: "Settings") -> str:
    """Return where the service of these settings would listen."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def open_registry(settings: "Settings", *, create: bool = False) -> "Registry":
    """Return the registry of the settings: SQLite in the home folder, or an MLflow server.

    create: make the one in the home folder if it is not there; reading commands must leave no empty one behind.
    Raises UnknownModelError where there is none.
    """
    from models.weights.mlflow_registry import MlflowRegistry
    from serve.home import check_format, claim_home

    if settings.registry_uri is None and not create and not (settings.root / "registry").is_dir():
        msg = f"nothing is registered in {settings.root}; add weights with: steelyard register FILE --model NAME"
        raise UnknownModelError(msg)
    if create:
        claim_home(settings.root)
    else:
        check_format(settings.root)
    return MlflowRegistry(settings.tracking_uri)


def model_name(stem: str) -> str:
    """Return the name under which a weights file of that stem is registered: lower case, digits, ``.``, ``_``, ``-``.

    Raises InvalidOptionError where nothing usable is left.
    """
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in stem)
    name = kept.lower().strip("._-")[:64]
    if not name:
        msg = f"no model name can be made of {stem!r}; give one with NAME=FILE or --model NAME"
        raise InvalidOptionError(msg)
    return name


def parse_sources(arguments: list[str]) -> dict[str, str | None]:
    """Return name -> weights file (None: what the registry holds) of repeated ``--model NAME[=FILE]`` options.

    ``--model weights.pt`` without a name takes the file's stem. Raises InvalidOptionError for a name that is not one
    or stands twice.
    """
    from models.weights.manifest import is_model_name

    sources: dict[str, str | None] = {}
    for argument in arguments:
        name, separator, file = argument.partition("=")
        if not separator and (Path(argument).suffix.lower() in {".pt", ".onnx"} or "/" in argument):
            name, file = model_name(Path(argument).stem), argument
        elif not is_model_name(name):
            msg = f"{name!r} is not a model name; use up to 64 letters, digits, '.', '_' and '-'"
            raise InvalidOptionError(msg)
        if separator and not file:
            msg = f"--model {argument} names no file after '='; give NAME=FILE, or NAME alone"
            raise InvalidOptionError(msg)
        if name in sources:
            msg = f"--model names {name!r} twice; name each model once"
            raise InvalidOptionError(msg)
        sources[name] = file or None
    return sources
