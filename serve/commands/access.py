"""``access add``, ``list``, ``rotate``, ``revoke``: API keys. A running service follows within two seconds."""

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from models.errors import InvalidOptionError
from serve.commands.output import HomeOption, JsonOption, guarded, note, print_json, print_table
from serve.commands.target import read_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve.access import AccessKey

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SPAN: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)

_NONE: Final = "no keys are in force; make one with: steelyard access add NAME --scope predict"
_SHUT: Final = "no keys, so nobody gets in; make one with: steelyard access add NAME --scope predict"

NameArgument = Annotated[str, typer.Argument(help="Name of the key.", metavar="NAME")]
KeyArgument = Annotated[str, typer.Argument(help="Name of the key, or its id.", metavar="NAME|ID")]


def add(
    name: NameArgument,
    *,
    scope: Annotated[list[str], typer.Option("--scope", help="What it opens: predict, admin or metrics; repeatable.")],
    rate: Annotated[float | None, typer.Option("--rate", help="Most requests a second over the whole service.")] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", help="Most requests at once over the whole service.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="How long it lives, such as 90d or 12h.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept.

    The first key puts keys in force: from then on every request to the service needs one.
    """
    from serve.access import Scope, issue
    from serve.access_store import added, edit

    settings = read_settings(home)
    unknown = [each for each in scope if each not in set(Scope)]
    if unknown:
        msg = f"--scope {unknown[0]} is none; use {', '.join(Scope)}"
        raise InvalidOptionError(msg)
    if rate is not None and not 0.0 < rate <= 1e9:  # noqa: PLR2004 - also refuses what is no number
        msg = f"--rate {rate:g} is not a positive number of requests a second"
        raise InvalidOptionError(msg)
    if concurrency is not None and concurrency < 1:
        msg = f"--concurrency {concurrency} lets no request in; use 1 or more, or leave it out"
        raise InvalidOptionError(msg)
    scopes = {Scope(each) for each in scope}
    lifetime_s = None if expires is None else seconds_of(expires, "--expires")
    made, text = issue(name, scopes, time.time(), lifetime_s=lifetime_s, rate_per_s=rate, concurrency=concurrency)
    first = False

    def change(keys: "tuple[AccessKey, ...]") -> "Sequence[AccessKey]":
        nonlocal first
        first = not keys
        return added(keys, made)

    edit(settings.access_path, change)
    _show(made, text, as_json=as_json)
    if first:
        note("keys are in force now: every request to the service needs one, from within two seconds on")


def listed(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the keys; what they are cannot be shown again."""
    from serve.access_document import read_keys

    now = time.time()
    found = read_keys(read_settings(home).access_path)
    keys = sorted(found or (), key=lambda key: key.name)
    if as_json:
        print_json({"in_force": found is not None, "keys": [_row(key, now) for key in keys]})
        return
    print_table(
        ("name", "id", "scopes", "rate/s", "concurrency", "created", "expires", "state"),
        (
            (
                key.name,
                key.key_id,
                ", ".join(sorted(key.scopes)),
                None if key.rate_per_s is None else f"{key.rate_per_s:g}",
                key.concurrency,
                _time(key.created),
                None if key.expires is None else _time(key.expires),
                _state(key, now),
            )
            for key in keys
        ),
        empty=_NONE if found is None else _SHUT,
    )


def rotate(
    name: KeyArgument,
    *,
    overlap: Annotated[str, typer.Option("--overlap", help="How long the old secret stays valid beside it.")] = "1h",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and print it, this once. Its id, scopes and limits stay.

    A key that expires lives as long again. A secret that an earlier rotation left valid ends now.
    """
    from serve.access import rotate as rotated
    from serve.access_store import edit, found

    overlap_s = seconds_of(overlap, "--overlap")
    done: list[tuple[AccessKey, str]] = []

    def change(keys: "tuple[AccessKey, ...]") -> "Sequence[AccessKey]":
        old = found(keys, name)
        done.append(rotated(old, time.time(), overlap_s=overlap_s))
        return [done[-1][0] if key is old else key for key in keys]

    edit(read_settings(home).access_path, change)
    key, text = done[-1]
    _show(key, text, as_json=as_json)
    if key.retiring is not None:
        note(f"the old one is valid until {_time(key.retiring.until)}")


def revoke(name: KeyArgument, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Take a key away, the secret of a rotation's overlap too; the service refuses it within two seconds."""
    from serve.access_store import edit, found

    gone: list[AccessKey] = []
    left: list[AccessKey] = []

    def change(keys: "tuple[AccessKey, ...]") -> "Sequence[AccessKey]":
        gone.append(found(keys, name))
        left[:] = [key for key in keys if key is not gone[-1]]
        return left

    settings = read_settings(home)
    edit(settings.access_path, change)
    if as_json:
        print_json({"revoked": _row(gone[-1], time.time())})
    else:
        typer.echo(f"{gone[-1].name} ({gone[-1].key_id}) is revoked")
    if not left:
        note(
            "that was the last key, and nobody gets in now; to serve this machine without keys, remove "
            f"{settings.access_path} and start the service again"
        )


def seconds_of(text: str, option: str) -> float:
    """Return the seconds that ``text``, such as ``90d``, ``12h``, ``30m`` or ``45s``, is. Raises InvalidOptionError."""
    match = _SPAN.fullmatch(text)
    if match is None or (option == "--expires" and not int(match[1])):
        msg = f"{option} {text} is no time span; give for example 90d, 12h, 30m or 45s"
        raise InvalidOptionError(msg)
    return int(match[1]) * _UNITS[match[2]]


def _show(key: "AccessKey", text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"key": text, **_row(key, time.time())})
        return
    note(f"{key.name} ({key.key_id}) opens {', '.join(sorted(key.scopes))}; this is the only time its key is shown:")
    typer.echo(text)


def _row(key: "AccessKey", now: float) -> dict[str, object]:
    return {
        "name": key.name,
        "id": key.key_id,
        "scopes": sorted(key.scopes),
        "rate_per_s": key.rate_per_s,
        "concurrency": key.concurrency,
        "created": _time(key.created),
        "expires": None if key.expires is None else _time(key.expires),
        "old_secret_until": None if key.retiring is None or key.retiring.until <= now else _time(key.retiring.until),
        "state": _state(key, now),
    }


def _state(key: "AccessKey", now: float) -> str:
    if key.expires is not None and key.expires <= now:
        return "expired"
    return "rotating" if key.retiring is not None and now < key.retiring.until else "valid"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


app.command()(guarded(add))
app.command("list")(guarded(listed))
app.command()(guarded(rotate))
app.command()(guarded(revoke))
