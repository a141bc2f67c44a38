"""``register``, ``models``, ``versions``: what the registry holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.errors import ConversionError, InvalidOptionError, UnknownModelError
from serve.commands.output import (
    HomeOption,
    JsonOption,
    KeyOption,
    UrlOption,
    note,
    print_json,
    print_table,
    progress_bar,
    short,
)
from serve.commands.rollouts import ModelArgument, TimeoutOption, promote_version
from serve.commands.target import connect, model_name, open_registry, read_settings

if TYPE_CHECKING:
    from models.weights.registry import VersionInfo
    from serve.client import ModelRow, VersionRow
    from serve.settings import Settings


def register(
    file: Annotated[str, typer.Argument(help="Weights: a .pt or .onnx file, or an official name such as yolo26n.pt.")],
    *,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model; default: the file's stem.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Make it the version that serves.")] = False,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Folder of pictures that every replica must see right.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="An Ultralytics data.yaml whose val pictures serve as golden ones.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    timeout: TimeoutOption = 300.0,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert FILE in a sandbox and register it as a new version; the same file again registers nothing new."""
    from models.weights.register import register as register_release
    from serve.trust import described, rule_of, signer

    settings = read_settings(home)
    name = model or model_name(Path(file).stem)
    try:
        with progress_bar(quiet=as_json) as progress:
            registry = open_registry(settings, create=True)
            signing = signer(settings)
            done = register_release(
                registry,
                file,
                model=name,
                golden=golden,
                data=data,
                progress=progress,
                key=signing[1] if signing else None,
            )
    except ConversionError as error:
        if Path(file).expanduser().exists():
            raise
        # Nothing was refused: there was nothing to convert.
        raise InvalidOptionError(str(error)) from None
    info = described(rule_of(settings), done.info)
    if as_json and not promote:
        print_json({"model": name, **version_row(info), "promotable": info.promotable, "new": done.created})
    elif not as_json:
        word = "registered as" if done.created else "is registered already:"
        typer.echo(f"{file} {word} {name} version {info.version} ({short(info.digest)})")
        if info.standing == "trusted" and signing and done.created:
            note(f"it is signed by {signing[0]} (key {info.signed_by})")
        elif signing and not done.created and info.standing != "trusted":
            note(f"it is not signed by a trusted key: sign it with `steelyard versions sign {name} {info.version}`")
        if info.promotable not in {"true", ""}:
            note(f"it cannot be promoted: {info.promotable}")
    if promote:
        promote_version(settings, name, info.version, url=url, key=key, wait=True, timeout=timeout, as_json=as_json)


def models(
    *, url: UrlOption = None, key: KeyOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List the models that the service serves, or without one those that the registry holds."""
    settings = read_settings(home)
    client = connect(settings, url, key)
    if client is None:
        rows = _registered(settings)
        if not as_json:
            note("no service is running; this is what the registry holds")
    else:
        with client:
            rows = client.models()
    if as_json:
        print_json({"models": rows})
        return
    print_table(
        ("model", "version", "digest", "task", "classes", "state"),
        (
            (row["name"], row["version"], short(row["digest"]), row["task"], _count(row["classes"]), row["state"])
            for row in rows
        ),
        empty="no models are registered; add one with: steelyard register FILE --model NAME",
    )


def versions(
    model: ModelArgument,
    *,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all versions of the model NAME, oldest first."""
    settings = read_settings(home)
    client = connect(settings, url, key)
    if client is None:
        from serve.trust import VouchedVersions, rule_of

        found = VouchedVersions(open_registry(settings), rule_of(settings)).versions(model)
        rows = [version_row(info) for info in found]
    else:
        with client:
            rows = client.versions(model)
    if as_json:
        print_json({"versions": rows})
        return
    print_table(
        ("version", "digest", "aliases", "state", "metrics", "signature", "created"),
        (
            (
                row["version"],
                short(row["digest"]),
                ", ".join(row["aliases"]),
                row["state"],
                ", ".join(f"{name} {value:.3g}" for name, value in row["metrics"].items()),
                _signature(row),
                row["created"],
            )
            for row in rows
        ),
        empty=f"{model} has no versions",
    )


def _registered(settings: "Settings") -> "list[ModelRow]":
    try:
        registry = open_registry(settings)
    except UnknownModelError:
        return []
    rows: list[ModelRow] = []
    for name in registry.models():
        wanted = registry.desired(name)
        rows.append(
            {
                "name": name,
                "version": None if wanted is None else wanted.version,
                "digest": None if wanted is None else wanted.digest,
                "task": None,
                "classes": None,
                "state": "registered" if wanted is None else "promoted",
            }
        )
    return rows


def version_row(info: "VersionInfo") -> "VersionRow":
    """Return a version as the service lists it."""
    return {
        "version": info.version,
        "digest": info.digest,
        "aliases": list(info.aliases),
        "state": info.state,
        "metrics": dict(info.metrics),
        "created": info.created,
        "signature": info.standing or "unsigned",
        "signed_by": info.signed_by,
    }


def _signature(row: "VersionRow") -> str | None:
    # A service of an earlier release tells nothing of it.
    standing, key_id = row.get("signature"), row.get("signed_by")
    if not standing or standing == "unsigned":
        return None
    return f"{standing} {key_id}" if key_id else standing


def _count(classes: Any) -> int | None:
    return len(classes) if isinstance(classes, (list, dict)) else None
