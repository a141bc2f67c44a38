"""The promises of the rollout protocol, as a fake fleet can be asked at any moment; numbered as in the design."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.rollout import choice, policy, rollback
from models.rollout.fake_fleet.world import BAD, ViolationError

if TYPE_CHECKING:
    from models.rollout.fake_fleet.world import World
    from models.rollout.messages import Target
    from models.rollout.state import State

JUDGES = ("load", "quality", "shadow", "canary", "rollback", "probation")
"""Steps at which a version that replicas can load is refused for good: by its nature, by somebody, for deaths (which is
all that is final in loading it), or for want of traffic."""


def check(world: World) -> None:
    """Raise ViolationError where a promise is broken at this moment."""
    for replica in world.replicas.values():
        machine = replica.state
        if machine is not None and not machine.outside and replica.active != (machine.generation, machine.digest):
            msg = f"{replica.name}: machine and engine disagree"
            raise ViolationError(msg)
    serving = [(r.name, r.active) for r in world.replicas.values() if r.may_start and r.active is not None]
    for name, (generation, digest) in serving:
        if digest in BAD:
            msg = f"I3: {name} serves {digest}, which failed"
            raise ViolationError(msg)
        if world.commits.get(generation) != digest:
            msg = f"I2: {name} serves {digest} as {generation}, which was never committed"
            raise ViolationError(msg)
        world.observed = max(world.observed, generation)
    late = [(name, active) for name, active in serving if active[0] < world.observed]
    if late:
        msg = f"I7: {late[0][0]} starts a batch on {late[0][1]} after {world.observed} was seen"
        raise ViolationError(msg)
    broken = world.clients.ask(world.replicas.values())
    if broken is not None:
        raise ViolationError(broken)


def converged(world: World) -> bool:
    """Return whether every live replica serves what is desired, or the last good where that was refused (I5)."""
    actor = world.actor
    if actor is None:
        return False
    action = choice.choose(actor.state, world.now)
    refused = isinstance(action, policy.Refuse) and action.failure.permanent
    judged = isinstance(action, policy.Refuse) and action.failure.step in JUDGES
    unlucky = refused and judged
    if actor.state.phase != "idle" or actor.state.committed is None:
        # With nothing ever committed and only bad or deadly versions desired, refusing is all there is to do.
        bad = world.alias.digest in BAD and bool(actor.state.rejections)
        return (bad or unlucky) and not world.commits
    committed = actor.state.committed
    live = [r for r in world.replicas.values() if r.gone_at is None]
    same = all(
        r.may_start and r.active == (committed.generation, committed.target.digest) and r.trial is None for r in live
    )
    wanted = actor.state.pin.target.digest if actor.state.pin else world.alias.digest
    return same and (refused if wanted in BAD else committed.target.digest == wanted or unlucky)


def note_rollback(world: World, now: State) -> None:
    """Remember what is under way while somebody asks for a rollback: it may not be committed, unless it is already."""
    target = _promoted(now)
    if target is None:
        return
    world.events[f"rollback in {now.phase}"] += 1
    world.events["rollback in canary hold"] += now.phase == "hold" and choice.next_step(now) is not None
    if now.phase != "commit":
        world.called_off.add(target)


def check_way_back(before: State, after: State) -> None:
    """Raise ViolationError where a rollback asked in the middle of an attempt leads elsewhere than to what serves.

    Where another rollback is under way already, that one's aim stands.
    """
    standing, pin = rollback.standing(before), after.pin
    way = standing.target if standing else choice.serving(before)
    if _promoted(before) is None or way is None:
        return
    if pin is None or (pin.target.version, pin.target.digest) != (way.version, way.digest):
        msg = f"a rollback in {before.phase} leads to {pin} instead of {way}"
        raise ViolationError(msg)


def _promoted(state: State) -> Target | None:
    """Return the target under way, None where nothing serves beside it or it is that of a rollback."""
    target = state.target
    if state.committed is None or target is None or (state.pin is not None and state.pin.target == target):
        return None
    return target
