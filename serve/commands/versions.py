"""``versions NAME``, ``versions sign``, ``delete``, ``prune``: what the registry keeps of a model."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from models.errors import InvalidOptionError, ReleaseRejectedError
from serve.commands import weights
from serve.commands.output import (
    FAILED,
    HomeOption,
    JsonOption,
    KeyOption,
    UrlOption,
    fail,
    guarded,
    print_json,
    print_table,
    short,
)
from serve.commands.rollouts import ModelArgument
from serve.commands.target import connect, open_registry, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from models.weights.registry import Registry, VersionInfo
    from models.weights.retention import InUse
    from serve.client import SteelyardClient
    from serve.settings import Settings

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")]

LIST = "list"


class VersionsGroup(TyperGroup):
    """``versions NAME`` without a subcommand lists; a model named like one is listed with ``versions list NAME``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the subcommand in that was left out."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [LIST, *args]
        return super().parse_args(ctx, args)  # type: ignore[arg-type,unused-ignore]


app = typer.Typer(cls=VersionsGroup, no_args_is_help=True, rich_markup_mode=None)


def sign(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version to sign, as `steelyard versions` lists it.")],
    *,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Vouch for a version that was registered before, in place of an earlier signature; its files are verified first.

    What is signed is what the registry holds now: compare the digest where you cannot be sure of the registry.
    """
    from models.weights.register import sign as sign_version
    from serve.trust import described, rule_of, signer

    settings = read_settings(home)
    registry = open_registry(settings)
    found = signer(settings)
    if found is None:
        msg = f"no key in {settings.keys_folder} can sign: make one with `steelyard keys new NAME`"
        raise InvalidOptionError(msg)
    name, key = found
    info = described(rule_of(settings), sign_version(registry, model, version, key))
    _note(settings, info, "sign", "signed", reason=f"{name} (key {key.public.ident})")
    if as_json:
        print_json({"model": model, **weights.version_row(info), "key": name})
    else:
        typer.echo(f"{model} version {version} ({short(info.digest)}) is signed by {name} (key {key.public.ident})")


def delete(
    model: ModelArgument,
    versions: Annotated[list[str], typer.Argument(help="Versions to delete.", metavar="VERSION...")],
    *,
    dry_run: DryRunOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete versions of the model NAME with their files, for good.

    What serves, served before, is desired, pinned or on its way, and what carries an alias, is refused; then nothing
    is deleted and the exit code is 1.
    """
    settings = read_settings(home)
    registry = open_registry(settings)
    known = {info.version: info for info in registry.versions(model)}
    for version in versions:
        if version not in known:
            registry.version(model, version)
    reasons = _protected(settings, registry, model, list(known.values()), connect(settings, url, key))
    kept = {version: reasons[version] for version in versions if version in reasons}
    chosen = [known[version] for version in dict.fromkeys(versions) if version not in reasons]
    if kept and not dry_run:
        chosen = []
    _carry_out(settings, registry, model, chosen, kept, dry_run=dry_run, as_json=as_json)
    if kept:
        fail(
            "; ".join(f"version {version} of {model} {reason}" for version, reason in kept.items())
            + (": nothing was deleted" if not dry_run else "")
        )
        raise typer.Exit(FAILED)


def prune(
    model: ModelArgument,
    *,
    keep: Annotated[
        int | None, typer.Option("--keep", min=0, help="Newest versions to keep; default: setting keep_versions.")
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0.0, help="Age up to which all stay; default: setting keep_days.")
    ] = None,
    dry_run: DryRunOption = False,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the versions of the model NAME that are neither in use nor among the newest nor young."""
    from models.weights.retention import Rule, fates, items

    settings = read_settings(home)
    registry = open_registry(settings)
    known = registry.versions(model)
    reasons = _protected(settings, registry, model, known, connect(settings, url, key))
    rule = Rule(settings.keep_versions if keep is None else keep, settings.keep_days if days is None else days)
    decided = fates(items(known), reasons, rule, datetime.now(UTC))
    kept = {fate.name: fate.kept for fate in decided if fate.kept}
    chosen = [info for info in known if info.version not in kept]
    _carry_out(settings, registry, model, chosen, kept, dry_run=dry_run, as_json=as_json)


def _protected(
    settings: "Settings",
    registry: "Registry",
    model: str,
    known: "Sequence[VersionInfo]",
    client: "SteelyardClient | None",
) -> dict[str, str]:
    """Return version -> why it must stay, from all that may know: registry, this home's record, the running service."""
    from models.weights.retention import protected

    return protected(known, _in_use(settings, registry, model, client), datetime.now(UTC))


def _in_use(settings: "Settings", registry: "Registry", model: str, client: "SteelyardClient | None") -> "InUse":
    from models.weights.cache import CommittedStore
    from serve.client import ServiceError
    from serve.in_use import of_record, of_registry, of_rollout

    record = CommittedStore(settings.root).load(model)
    use = of_registry(registry.desired(model), registry.recorded_serving(model)) | of_record(record)
    if client is None:
        return use
    with client:
        try:
            return use | of_rollout(client.rollout(model), record)
        except ServiceError as error:
            if error.code == "unknown_model":  # it serves other models
                return use
            raise


def _carry_out(
    settings: "Settings",
    registry: "Registry",
    model: str,
    chosen: "Sequence[VersionInfo]",
    kept: dict[str, str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete what was chosen, unless ``dry_run``, and report."""
    deleted: list[str] = []
    late: dict[str, str] = {}
    for info in chosen:
        try:
            if not dry_run:
                registry.delete_version(model, info.version)
                _note(settings, info, "delete", "deleted")
        except ReleaseRejectedError as error:  # promoted since the list was read
            late[info.version] = str(error)
        else:
            deleted.append(info.version)
    if not dry_run:
        _drop_cached(settings, registry, model, (info for info in chosen if info.version in deleted))
    if as_json:
        print_json({"model": model, "deleted": deleted, "kept": kept | late, "dry_run": dry_run})
    else:
        word = "would be deleted" if dry_run else "deleted"
        print_table(
            ("version", "outcome"),
            [
                *((version, word) for version in deleted),
                *((version, f"stays: it {why}") for version, why in kept.items()),
            ],
            empty=f"{model} has no versions",
        )
    if late:
        fail(" ".join(late.values()))
        raise typer.Exit(FAILED)


def _note(settings: "Settings", info: "VersionInfo", action: str, result: str, *, reason: str = "") -> None:
    """Write what was done to a version into the home's audit."""
    from models.rollout.messages import Target
    from models.weights.mlflow_entities import user
    from serve.audit import Audit

    audit = Audit(settings.root / "audit")
    about = Target(info.version, info.digest, "")
    line = audit.line(info.model, action, about, None, result=result, reason=reason, who=user(), generation=0)
    audit.append(line)


def _drop_cached(settings: "Settings", registry: "Registry", model: str, gone: "Iterable[VersionInfo]") -> None:
    """Take deleted releases out of the cache, but for those that another version or a durable record shares."""
    from models.weights.cache import CommittedStore, ReleaseCache
    from serve.in_use import digests_of

    digests = {info.digest for info in gone if info.digest}
    if not digests:
        return
    shared = {info.digest for info in registry.versions(model)}
    shared |= {digest for record in CommittedStore(settings.root).records() for digest in digests_of(record)}
    cache = ReleaseCache(settings.cache)
    stored = {item.name for item in cache.stored()}
    for digest in digests & stored - shared:
        cache.drop(digest)


app.command(LIST)(guarded(weights.versions))
app.command()(guarded(sign))
app.command()(guarded(delete))
app.command()(guarded(prune))
