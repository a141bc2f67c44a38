"""``detect``: pictures in, a table out, and on demand the same pictures with the boxes drawn."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.errors import InvalidOptionError, SteelyardError
from serve.commands.output import (
    FAILED,
    HomeOption,
    JsonOption,
    KeyOption,
    UrlOption,
    fail,
    print_json,
    print_table,
    progress_bar,
)
from serve.commands.target import connect, default_url, read_settings

if TYPE_CHECKING:
    from serve.client import Box, DetectAnswer, SteelyardClient


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: an answer, or the error in its place; ``saved`` where a drawn picture was written."""

    file: Path
    answer: "DetectAnswer | None" = None
    error: SteelyardError | None = None
    saved: Path | None = None


def detect(
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files.", metavar="IMAGE...")],
    *,
    url: UrlOption = None,
    key: KeyOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of the model; default: the first one.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Draw the boxes: a picture to write, or a folder for several.")
    ] = None,
    conf: Annotated[float | None, typer.Option("--conf", help="Least confidence, 0 to 1.")] = None,
    iou: Annotated[float | None, typer.Option("--iou", help="Overlap at which the lesser box goes, 0 to 1.")] = None,
    max_det: Annotated[int | None, typer.Option("--max-det", help="Most boxes a picture, 1 to 300.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Pictures in flight at once.")] = 4,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the running service what it sees in each IMAGE; a table of boxes, or JSON.

    A picture that fails is reported and the others go on; the exit code is then 1.
    """
    from serve.client import SteelyardClient

    targets = _targets(images, save)
    settings = read_settings(home)
    client = connect(settings, url, key) or SteelyardClient(default_url(settings), key=key)
    options = {"model": model, "conf": conf, "iou": iou, "max_det": max_det}
    outcomes: list[Outcome] = []
    with client, progress_bar(quiet=as_json or len(images) == 1) as progress:
        for outcome in _run(client, images, targets, options, jobs=jobs):
            outcomes.append(outcome)
            progress(outcome.file.name, len(outcomes) / len(images))
    if as_json:
        print_json({"images": [_as_json(outcome) for outcome in outcomes]})
    else:
        _print(outcomes)
    for outcome in outcomes:
        if outcome.error is not None:
            fail(f"{outcome.file}: {outcome.error}")
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(FAILED)


def _run(
    client: "SteelyardClient",
    images: list[Path],
    targets: dict[Path, Path],
    options: dict[str, Any],
    *,
    jobs: int,
) -> Iterator[Outcome]:
    """Yield the outcomes in the order of ``images``; a service out of reach ends it for all of them at once."""
    from serve.client import ServiceError

    def one(file: Path) -> Outcome:
        try:
            data = _read(file)
            answer = client.detect(data, **options)
            saved = targets.get(file)
            if saved is not None:
                from serve.draw import draw_boxes

                saved.parent.mkdir(parents=True, exist_ok=True)
                saved.write_bytes(draw_boxes(data, answer.boxes, name=saved))
        except ServiceError as error:
            if error.status is None and error.code == "unreachable":
                raise
            return Outcome(file, error=error)
        except SteelyardError as error:
            return Outcome(file, error=error)
        return Outcome(file, answer=answer, saved=saved)

    with ThreadPoolExecutor(min(jobs, len(images)), thread_name_prefix="detect") as pool:
        futures = [pool.submit(one, file) for file in images]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _read(file: Path) -> bytes:
    if file.is_dir():
        msg = f"is a folder; name the pictures in it, e.g. {file}/*.jpg"
        raise InvalidOptionError(msg)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        msg = "does not exist; check the name"
        raise InvalidOptionError(msg) from None
    except OSError as error:
        msg = f"cannot be read: {error.strerror}"
        raise InvalidOptionError(msg) from None


def _targets(images: list[Path], save: Path | None) -> dict[Path, Path]:
    """Return file -> picture to write: ``save`` itself for one file, one name each in the folder ``save`` for several.

    Raises InvalidOptionError where the suffix is none of a picture, or a source would be overwritten.
    """
    if save is None:
        return {}
    from serve.draw import picture_format

    files = list(dict.fromkeys(images))
    if len(files) == 1 and not save.is_dir() and save.suffix:
        picture_format(save)
        targets = {files[0]: save}
    elif save.suffix and not save.is_dir():
        msg = f"--save {save} is one picture but {len(files)} were given; name a folder"
        raise InvalidOptionError(msg)
    else:
        targets = {}
        for file in files:
            name, number = f"{file.stem}.jpg", 1
            while save / name in targets.values():
                number += 1
                name = f"{file.stem}-{number}.jpg"
            targets[file] = save / name
    sources = {file.resolve() for file in files}
    for target in targets.values():
        if target.resolve() in sources:
            msg = f"--save would overwrite {target}; choose another name or folder"
            raise InvalidOptionError(msg)
    return targets


def _as_json(outcome: Outcome) -> dict[str, Any]:
    line: dict[str, Any] = {"file": str(outcome.file)}
    if outcome.answer is None:
        return line | {"error": {"code": getattr(outcome.error, "code", "internal"), "detail": str(outcome.error)}}
    line |= {"metadata": outcome.answer.body["metadata"], **outcome.answer.body["images"][0]}
    return line if outcome.saved is None else line | {"saved": str(outcome.saved)}


def _print(outcomes: list[Outcome]) -> None:
    several = len(outcomes) > 1
    rows = [
        ((outcome.file.name,) if several else ()) + _cells(box)
        for outcome in outcomes
        if outcome.answer is not None
        for box in outcome.answer.boxes
    ]
    columns = (("file",) if several else ()) + ("class", "confidence", "x1", "y1", "x2", "y2")
    answers = [outcome.answer for outcome in outcomes if outcome.answer is not None]
    if answers:
        print_table(columns, rows, empty="nothing was detected")
        releases = sorted({f"{answer.model} version {answer.version}" for answer in answers})
        typer.echo(f"{len(rows)} boxes by {', '.join(releases)}")
    for outcome in outcomes:
        if outcome.saved is not None:
            typer.echo(f"wrote {outcome.saved}")


def _cells(box: "Box") -> tuple[str, ...]:
    return (box.name, f"{box.confidence:.3f}", *(f"{edge:.1f}" for edge in (box.x1, box.y1, box.x2, box.y2)))
