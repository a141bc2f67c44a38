"""The command tree of ``steelyard``."""

from typing import Annotated

import typer

from serve.commands import access, backups, detect, evaluations, keys, rollouts, serving, versions, weights
from serve.commands.output import DEBUG, guarded

app = typer.Typer(
    name="steelyard",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Serve object detectors and change their weights under load without failing a request.",
)


def _version(asked: bool) -> None:  # noqa: FBT001 - typer hands an option's value to its callback
    if asked:
        from importlib.metadata import version

        typer.echo(f"steelyard {version('steelyard')}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    del version
    DEBUG.set(debug)


for command in (
    serving.serve,
    weights.register,
    weights.models,
    evaluations.evaluate,
    rollouts.promote,
    rollouts.rollback,
    rollouts.rollout,
    detect.detect,
    backups.backup,
    backups.restore,
):
    app.command()(guarded(command))
app.add_typer(access.app, name="access", help="API keys: add, list, rotate and revoke them.")
app.add_typer(keys.app, name="keys", help="Keys that sign versions: make, trust, list and distrust them.")
app.add_typer(
    versions.app,
    name="versions",
    help="List all versions of the model NAME, oldest first (versions NAME); sign, delete or prune them.",
)
