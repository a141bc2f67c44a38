"""``evaluate``: measure how well a registered version detects, for the gate before it serves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve.commands.output import HomeOption, JsonOption, note, print_json, progress_bar, short
from serve.commands.rollouts import ModelArgument
from serve.commands.target import open_registry, read_settings

if TYPE_CHECKING:
    from models.weights.registry import Evaluation, Registry


def evaluate(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version to evaluate, as `steelyard versions` lists it.")],
    *,
    data: Annotated[Path, typer.Option("--data", help="An Ultralytics data.yaml; its val images are used.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute VERSION's mAP on labelled images, scored as Ultralytics' val scores, and keep it in the registry.

    What is evaluated is the release that would serve. The quality gate of `steelyard promote` compares versions that
    were evaluated on the same images and labels.
    """
    from models.weights.evaluation import evaluate as evaluate_release
    from serve.trust import rule_of

    settings = read_settings(home)
    registry, rule = open_registry(settings), rule_of(settings)
    with progress_bar(quiet=as_json) as progress:
        found = evaluate_release(registry, model, version, data.expanduser(), rule=rule, progress=progress)
    serving = _promoted(registry, model, version, found.data)
    if as_json:
        print_json(_as_json(model, version, found))
        return
    typer.echo(
        f"{model} version {version}: mAP50-95 {found.map50_95:.4f}, mAP50 {found.map50:.4f} on {found.images} images "
        f"with {found.boxes} boxes of {found.data_name} (data {short(found.data)})"
    )
    if serving is not None:
        promoted, theirs = serving
        change = found.map50_95 - theirs.map50_95
        typer.echo(
            f"version {promoted}, which is promoted, has mAP50-95 {theirs.map50_95:.4f} there: "
            f"a change of {change:+.4f}"
        )


def _promoted(registry: "Registry", model: str, version: str, data: str) -> "tuple[str, Evaluation] | None":
    """Return the promoted version and its evaluation on the same data, unless there is none or it is this one."""
    wanted = registry.desired(model)
    if wanted is None or wanted.version == version:
        return None
    same = [each for each in registry.evaluations(model, wanted.version) if each.data == data]
    if not same:
        note(f"version {wanted.version}, which is promoted, is not evaluated on this data")
        return None
    return wanted.version, same[-1]


def _as_json(model: str, version: str, found: "Evaluation") -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "digest": found.release,
        "map50_95": found.map50_95,
        "map50": found.map50,
        "images": found.images,
        "boxes": found.boxes,
        "data": found.data,
        "data_name": found.data_name,
        "method": found.method,
        "created": found.created,
    }
