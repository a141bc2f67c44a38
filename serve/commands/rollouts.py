"""``promote``, ``rollback``, ``rollout``: change what serves, and watch the fleet change."""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import InvalidOptionError
from serve.commands.evidence import progress_lines, without_time
from serve.commands.orders import (
    AllowOption,
    CanaryOption,
    ForceOption,
    ReasonOption,
    ShadowOption,
    StepOption,
    read_order,
)
from serve.commands.output import (
    FAILED,
    HomeOption,
    JsonOption,
    KeyOption,
    Progress,
    UrlOption,
    fail,
    note,
    print_json,
    print_table,
    progress_bar,
)
from serve.commands.target import connect, open_registry, read_settings

if TYPE_CHECKING:
    from models.rollout.order import Order
    from serve.client import Rollout, SteelyardClient
    from serve.settings import Settings

POLL_S = 0.25
SHOW_S = 5.0
"""Time between two shows of what a trial has seen, where nothing else is new (seconds)."""

WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every replica serves it.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=1.0, help="Longest wait for the replicas (seconds).")]
ModelArgument = Annotated[str, typer.Argument(help="Name of the model.", metavar="NAME")]


def promote(
    model: ModelArgument,
    version: Annotated[str, typer.Argument(help="Version to serve, as `steelyard versions` lists it.")],
    *,
    allow_contract_change: AllowOption = False,
    force: ForceOption = False,
    reason: ReasonOption = None,
    shadow: ShadowOption = None,
    canary: CanaryOption = None,
    step: StepOption = None,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300.0,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make VERSION the one that serves, and wait until all replicas have flipped.

    Exits with 1 and the reason where a gate or the fleet refuses it; the old version serves on. Without a running
    service the registry is changed, and the next start serves VERSION. The time of --shadow and --canary is added to
    --timeout.
    """
    order = read_order(
        allow_contract_change=allow_contract_change,
        force=force,
        reason=reason,
        shadow=shadow,
        canary=canary,
        step=step,
    )
    promote_version(
        read_settings(home),
        model,
        version,
        url=url,
        key=key,
        wait=wait,
        timeout=timeout + order.length_s,
        as_json=as_json,
        reason=reason,
        order=order,
    )


def promote_version(
    settings: "Settings",
    model: str,
    version: str,
    *,
    url: str | None,
    key: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
    reason: str | None = None,
    order: "Order | None" = None,
) -> None:
    """Promote through the service, or in the registry where none runs; report; raise typer.Exit(1) if refused.

    reason: for the record, None for none. order: None waives nothing and asks for no trial.
    """
    from models.rollout.order import PLAIN

    order = order or PLAIN
    client = connect(settings, url, key)
    if client is None:
        from models.weights.register import promote as promote_in_registry

        desired = promote_in_registry(open_registry(settings), model, version, reason=reason or "promote", order=order)
        if as_json:
            print_json({"model": model, "desired": desired.version, "serving": None, "state": "not running"})
        else:
            typer.echo(
                f"{model}: version {desired.version} is promoted; no service is running, the next start serves it"
            )
        return
    with client:
        client.promote(model, version, reason=reason, order=order)
        if not wait:
            _report(client.rollout(model), as_json=as_json, done="asked for")
            return
        with progress_bar(quiet=as_json) as progress:
            state = follow(
                client,
                model,
                lambda seen: seen["serving"] == version,
                wanted=version,
                timeout=timeout,
                progress=progress,
            )
    _conclude(state, arrived=state["serving"] == version, as_json=as_json)


def rollback(
    model: ModelArgument,
    *,
    wait: WaitOption = True,
    timeout: TimeoutOption = 300.0,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to the version that served before; it is still resident, so this is a flip.

    Only the running service knows what served before. Without one, `steelyard versions NAME` and `steelyard promote
    NAME VERSION` choose what the next start serves.
    """
    client = connect(read_settings(home), url, key)
    if client is None:
        msg = (
            f"rollback needs the running service, and none runs from this home folder; "
            f"choose with `steelyard versions {model}`, then `steelyard promote {model} VERSION`"
        )
        raise InvalidOptionError(msg)
    with client:
        before = client.rollout(model)

        def arrived(seen: "Rollout") -> bool:
            return seen["generation"] > before["generation"] and seen["serving"] != before["serving"]

        client.rollback(model)
        if not wait:
            _report(client.rollout(model), as_json=as_json, done="asked for")
            return
        with progress_bar(quiet=as_json) as progress:
            state = follow(client, model, arrived, timeout=timeout, progress=progress)
    _conclude(state, arrived=arrived(state), as_json=as_json)


def rollout(
    model: ModelArgument,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again at every change until Ctrl-C.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is desired, what serves, and every replica's state."""
    settings = read_settings(home)
    client = connect(settings, url, key)
    if client is None:
        wanted = open_registry(settings).desired(model)
        if not as_json:
            note("no service is running; this is what the registry names")
        _report(
            {
                "model": model,
                "desired": None if wanted is None else wanted.version,
                "serving": None,
                "generation": 0,
                "state": "not running",
                "step": None,
                "reason": None,
                "replicas": [],
            },
            as_json=as_json,
        )
        return
    with client:
        seen, shown = client.rollout(model), time.monotonic()
        _report(seen, as_json=as_json)
        with contextlib.suppress(KeyboardInterrupt):
            while watch:
                time.sleep(POLL_S)
                now = client.rollout(model)
                due = time.monotonic() - shown >= SHOW_S
                if without_time(now) != without_time(seen) or (due and now != seen):
                    seen, shown = now, time.monotonic()
                    _report(seen, as_json=as_json)


def follow(
    client: "SteelyardClient",
    model: str,
    arrived: "Callable[[Rollout], bool]",
    *,
    wanted: str | None = None,
    timeout: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> "Rollout":
    """Ask for the rollout until all replicas serve what ``arrived`` accepts, or the fleet refused it.

    Args:
        client: of the service.
        model: whose rollout.
        arrived: whether ``serving`` is what was asked for.
        wanted: the version asked for, None where the service chooses it. A refusal of another one is an older story.
        timeout: seconds until it is given up.
        progress: told the state and the share of replicas that have flipped.
        clock: seconds, monotonic.
        sleep: pauses for a number of seconds.

    Returns:
        The last state seen: all replicas on ``serving``, or ``state`` is ``rejected``.

    Raises:
        ServiceError: the time ran out, another version was promoted meanwhile, or the service refuses to tell.
    """
    from serve.client import ServiceError

    deadline = clock() + timeout
    last = "nothing was heard of it"
    ours = False
    while clock() < deadline:
        try:
            state = client.rollout(model)
        except ServiceError as error:
            # The service may be busy or restarting while it flips; only the deadline ends the wait for it.
            if error.status is not None and error.status < 500:  # noqa: PLR2004 - the class of client errors
                raise
            last = str(error)
        else:
            replicas = [replica for replica in state["replicas"] if replica["state"] != "dead"]
            there = sum(replica["version"] == state["serving"] for replica in replicas) if arrived(state) else 0
            last = f"{there} of {len(replicas)} replicas had flipped, state {state['state']}"
            progress(f"{model}: {state['state']}", there / max(1, len(replicas)))
            about = wanted is None or state["desired"] == wanted
            if (replicas and there == len(replicas)) or (about and state["state"] == "rejected"):
                return state
            if ours and not about:
                msg = f"{model}: version {state['desired']} was promoted while {wanted} was on its way"
                raise ServiceError(msg, code="superseded")
            ours = about
        sleep(POLL_S)
    msg = f"{model} did not get there within {timeout:g} s: {last}; look again with `steelyard rollout {model}`"
    raise ServiceError(msg, code="rollout_timeout")


def _conclude(state: "Rollout", *, arrived: bool, as_json: bool) -> None:
    if not arrived:
        if as_json:
            print_json(state)
        fail(
            f"{state['model']}: version {state['desired']} was refused at step {state['step']}: {state['reason']} "
            f"(version {state['serving']} serves on)"
        )
        raise typer.Exit(FAILED)
    count = len(state["replicas"])
    where = "its replica" if count == 1 else f"all {count} replicas"
    _report(state, as_json=as_json, done=f"version {state['serving']} serves on {where}")


def _report(state: "Rollout", *, as_json: bool, done: str | None = None) -> None:
    if as_json:
        print_json(state)
        return
    if done is not None:
        typer.echo(f"{state['model']}: {done}, generation {state['generation']}")
        return
    typer.echo(
        f"{state['model']}: desired {state['desired'] or '-'}, serving {state['serving'] or '-'}, "
        f"generation {state['generation']}, {state['state']}"
    )
    if state["reason"]:
        typer.echo(f"  at step {state['step']}: {state['reason']}")
    for line in progress_lines(state):
        typer.echo(f"  {line}")
    print_table(
        ("replica", "version", "state"),
        ((replica["id"], replica["version"], replica["state"]) for replica in state["replicas"]),
        empty="no replicas",
    )
