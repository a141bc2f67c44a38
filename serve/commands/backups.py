"""``backup``, ``restore``: a home folder in one file, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serve.commands.output import HomeOption, JsonOption, note, print_json, progress_bar
from serve.commands.target import read_settings

FileArgument = Annotated[Path, typer.Argument(help="The backup, a tar file.", metavar="FILE")]


def backup(file: FileArgument, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Write the home folder into FILE: registry, weights, what serves, audit. A running service may go on."""
    from serve.backup import back_up

    settings = read_settings(home)
    with progress_bar(quiet=as_json) as progress:
        done = back_up(settings.root, file.expanduser(), progress=progress)
    if as_json:
        print_json({"file": str(file), "home": str(settings.root), **asdict(done)})
        return
    typer.echo(f"{file}: {done.files} files, {done.size / 1e6:.1f} MB of {settings.root}")
    if not done.registry:
        note("the registry is not in this home folder, so it is not in the backup: back it up where it is")


def restore(file: FileArgument, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make the home folder, which must be new or empty, what it was when FILE was written."""
    from serve.restore import restore as restore_home

    settings = read_settings(home)
    with progress_bar(quiet=as_json) as progress:
        done = restore_home(file.expanduser(), settings.root, progress=progress)
    if as_json:
        print_json({"file": str(file), "home": str(settings.root), **asdict(done)})
    else:
        typer.echo(f"{settings.root}: {done.files} files, {done.size / 1e6:.1f} MB, as of {done.created}")
        note("API keys and the keys that sign versions are in no backup: put them back before you start the service")
