"""``keys new``, ``trust``, ``list``, ``distrust``: whose signatures let a version serve, and who signs here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import InvalidOptionError
from serve.commands.output import HomeOption, JsonOption, guarded, note, print_json, print_table
from serve.commands.target import read_settings

if TYPE_CHECKING:
    from models.weights.keys import KeyFolder
    from models.weights.signing import PublicKey
    from serve.settings import Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

NameArgument = Annotated[str, typer.Argument(help="Name of the key, for people.", metavar="NAME")]
MAX_FILE_BYTES = 16 * 1024


def new(name: NameArgument, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make a key pair, trust its public half, and sign with it whatever is registered here from now on.

    The private half stays in the folder of keys, readable by this user only, and is in no backup: copy it to a safe
    place. Elsewhere, `steelyard keys trust` takes the line printed here.
    """
    folder = _folder(read_settings(home))
    public = folder.new(name)
    if as_json:
        print_json(_document(name, public) | {"folder": str(folder.path)})
        return
    _tell(name, public)
    note(f"it signs what is registered here; its private half is {folder.path / f'{name}.key'}")


def trust(
    key: Annotated[str, typer.Argument(help="A file with the public key, or the key itself.", metavar="FILE|KEY")],
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the key, for people; default: the file's.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let versions serve that are signed by this key: PEM, OpenSSH's form, or the line that `keys new` prints.

    Compare the fingerprint with whoever gave you the key.
    """
    folder = _folder(read_settings(home))
    public, stem = _public_key(key)
    chosen = name or stem or public.ident
    folder.trust(chosen, public)
    if as_json:
        print_json(_document(chosen, public) | {"folder": str(folder.path)})
        return
    _tell(chosen, public)


def show(*, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the keys: those that are trusted, and those that can sign here."""
    folder = _folder(read_settings(home))
    rows = folder.rows()
    if as_json:
        keys = [
            (_document(row.name, row.public) if row.public else {"name": row.name, "id": None})
            | {"trusted": row.trusted, "private": row.private, "signs": row.signs}
            for row in rows
        ]
        print_json({"folder": str(folder.path), "keys": keys})
        return
    print_table(
        ("name", "key", "fingerprint", "trusted", "signs", "public key"),
        (
            (
                row.name,
                row.public.ident if row.public else "unreadable",
                row.public.fingerprint if row.public else None,
                "yes" if row.trusted else "no",
                "yes" if row.signs else None,
                row.public.text if row.public else None,
            )
            for row in rows
        ),
        empty=f"no keys in {folder.path}; make one with: steelyard keys new NAME",
    )


def distrust(name: NameArgument, *, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Refuse from the next load on what this key has signed; what serves goes on until it is loaded again.

    Promote a version that another key has signed first, or a replica that starts anew finds nothing that it may load.
    """
    folder = _folder(read_settings(home))
    folder.distrust(name)
    left = [key.name for key in folder.trusted_or_none()]
    if as_json:
        print_json({"name": name, "trusted": left, "folder": str(folder.path)})
        return
    typer.echo(f"{name} is trusted no longer; trusted: {', '.join(left) or 'no key'}")


def _folder(settings: "Settings") -> "KeyFolder":
    from models.weights.keys import KeyFolder

    # A folder that the settings name may be made by these commands; only those that verify demand that it is there.
    return KeyFolder(settings.keys_folder)


def _public_key(given: str) -> "tuple[PublicKey, str | None]":
    """Return the key, and the file's stem where it is in one. Raises InvalidOptionError."""
    from models.weights.signing import parse_public_key

    path = Path(given).expanduser()
    is_file = len(given) < 1024 and path.is_file()  # noqa: PLR2004 - beyond any path; a key in PEM has line breaks
    try:
        if is_file:
            with path.open("rb") as file:
                return parse_public_key(file.read(MAX_FILE_BYTES)), path.stem
        return parse_public_key(given.encode()), None
    except ValueError:
        what = f"the file {given} holds" if is_file else f"{given[:64]!r} is no file and"
        msg = f"{what} no Ed25519 public key; give a .pub file, or the line that `steelyard keys new` printed"
        raise InvalidOptionError(msg) from None


def _document(name: str, public: "PublicKey") -> dict[str, object]:
    return {"name": name, "id": public.ident, "fingerprint": public.fingerprint, "public": public.text}


def _tell(name: str, public: "PublicKey") -> None:
    typer.echo(f"{name} is trusted: key {public.ident}")
    typer.echo(f"fingerprint (sha256): {public.fingerprint}")
    typer.echo(f"public key: {public.text}")


app.command("new")(guarded(new))
app.command("trust")(guarded(trust))
app.command("list")(guarded(show))
app.command("distrust")(guarded(distrust))
