"""See to it, before a service starts, that the registry holds a production version of every model it is to serve."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from models import demo
from models.errors import ConversionError, RegistryError, ReleaseFaultError, ReleaseRejectedError, UnknownModelError
from models.weights.cache import past_mending
from models.weights.register import promote, register

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from models.weights.cache import CommittedStore, ReleaseCache
    from models.weights.registry import Registry
    from models.weights.signing import SigningKey

DEMO_VERSIONS: Final = (1, 2)
"""Demo weights in the order in which they are registered; the last is the better one."""

_OFFICIAL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]*\.pt")


def check_sources(sources: Mapping[str, str | None]) -> None:
    """Refuse weights files that are missing or unreadable. Raises ConversionError in one sentence.

    A bare name such as ``yolo26n.pt`` that is no file may be an official one, and is left to registration.
    """
    for source in sources.values():
        if source is None:
            continue
        path = Path(source).expanduser()
        if path.is_dir():
            msg = f"{source} is a folder: give a .pt or .onnx weights file"
        elif path.exists() and not os.access(path, os.R_OK):
            msg = f"the weights file {source} cannot be read: check its permissions"
        elif not path.exists() and not _OFFICIAL_NAME.fullmatch(source):
            msg = f"there is no weights file {source}: check the path"
        else:
            continue
        raise ConversionError(msg)


def stock(
    registry: Registry,
    sources: Mapping[str, str | None],
    *,
    committed: CommittedStore,
    cache: ReleaseCache,
    say: Callable[[str], None],
    progress: Callable[[str, float], None],
    key: SigningKey | None = None,
) -> None:
    """Register and promote what is missing; blocks, for minutes where weights must be converted.

    sources: model name -> weights file to register, promote and serve, or None for what the registry holds already.
    The demo detector's own name is filled from the package where the registry holds nothing of it.
    committed, cache: what this machine served last; enough for a model without a source, without asking the registry,
    where every byte of it is sound.
    say: called with one line for people. progress: called with a stage's name and the fraction done, 0 to 1.
    key: signs what is registered, None leaves it unsigned.

    Raises ConversionError, ReleaseRejectedError, UnknownModelError or RegistryError, each in a sentence or two. Where
    the registry is unreachable and the copy here is damaged, the damage is named.
    """
    for model, source in sources.items():
        if source is not None:
            _stock_file(registry, model, source, say=say, progress=progress, key=key)
            continue
        # The rollout reads the registry anyway; asking here as well would take seconds, and it may be down.
        if _served_here(model, committed, cache, registry):
            continue
        if model == demo.MODEL_NAME:
            _stock_demo(registry, say, progress, key)
        else:
            msg = (
                f"the registry holds no production version of {model}: register one with "
                f"`steelyard register FILE --model {model} --promote`, or serve a file with --model {model}=FILE"
            )
            raise UnknownModelError(msg)


def registry_holds(registry: Registry, model: str) -> bool:
    """Return whether a version of ``model`` has been promoted. Raises RegistryError."""
    try:
        return registry.desired(model) is not None
    except UnknownModelError:
        return False


def _served_here(model: str, committed: CommittedStore, cache: ReleaseCache, registry: Registry) -> bool:
    """Return whether this machine holds what the fleet committed last for ``model``, or the registry a version.

    A replica would find damage too, but nothing answers there that could tell of it.
    """
    damage: ReleaseFaultError | None = None
    last = committed.load(model)
    if last is not None:
        try:
            if cache.open(model, last.version, last.digest) is not None:
                return True
        except ReleaseRejectedError:
            return (
                True  # the rollout refuses it by name, as one whose signature fails, and goes on with what is promoted
            )
        except ReleaseFaultError as error:
            damage = error
    try:
        return registry_holds(registry, model)
    except RegistryError as error:
        if damage is None:
            raise
        raise past_mending(damage) from error


def _stock_file(
    registry: Registry,
    model: str,
    source: str,
    *,
    say: Callable[[str], None],
    progress: Callable[[str, float], None],
    key: SigningKey | None,
) -> None:
    say(f"registering {source} as {model}")
    done = register(registry, source, model=model, progress=progress, key=key)
    version = done.info.version
    say(f"{model} version {version} " + ("registered" if done.created else "is that file already"))
    desired = registry.desired(model)
    if desired is None or desired.version != version:
        promote(registry, model, version)


def _stock_demo(
    registry: Registry, say: Callable[[str], None], progress: Callable[[str, float], None], key: SigningKey | None
) -> None:
    try:
        measurements = [demo.metrics(number) for number in DEMO_VERSIONS]
    except FileNotFoundError:
        measurements = []
    if not measurements or not all(demo.weights_path(number).is_file() for number in DEMO_VERSIONS):
        msg = (
            "the demo detector's weights are not installed here: name a model with --model NAME=FILE, or one that the "
            "registry holds with --model NAME"
        )
        raise UnknownModelError(msg)
    say("first start: registering the demo detector, two versions")
    for number, measured in zip(DEMO_VERSIONS, measurements, strict=True):
        done = register(
            registry,
            demo.weights_path(number),
            model=demo.MODEL_NAME,
            golden=demo.GOLDEN_DIR,
            metrics={"mAP50-95": float(measured["map50_95"]), "mAP50": float(measured["map50"])},
            progress=lambda stage, fraction, number=number: progress(  # type: ignore[misc]
                f"{demo.MODEL_NAME} {number}: {stage}", fraction
            ),
            key=key,
        )
    promote(registry, demo.MODEL_NAME, done.info.version)
