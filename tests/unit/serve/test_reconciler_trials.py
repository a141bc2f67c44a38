"""The whole rollout without Ray: what gates, trials and probation stop, and what they let pass."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
from rollout_world import MODEL

from models.errors import ReleaseRejectedError
from models.evidence import Evidence, Pairs, Tally
from models.rollout.ledger import FakeLedger
from models.rollout.order import Order
from models.rollout.probation import ProbationLimits
from models.rollout.state import Timing
from models.rollout.trial import TrialLimits
from models.weights.registry import Evaluation
from serve.fake_time import run
from serve.outbox import SETTLE_S
from serve.reconciler import Parts
from serve.settings import Settings

if TYPE_CHECKING:
    from rollout_world import Fleet

GOOD = Evidence(Tally(100), Tally(200), Pairs(images=100))
FAILING = Evidence(Tally(100), Tally(60, errors=50), Pairs(images=60))
TIMING = Timing(trial=TrialLimits(least_images=50), probation=ProbationLimits(window_s=600.0))
TRIED = Order(shadow_s=5.0, canary=(0.05, 0.25), step_s=3.0)


async def _serving(fleet: Fleet, *names: str, timing: Timing = TIMING) -> None:
    """Start replicas on version 1."""
    fleet.timing = timing
    await fleet.begin()
    await asyncio.gather(*(fleet.start(name) for name in names))
    await fleet.until(fleet.all_on("1"))


def _show(fleet: Fleet, version: str, evidence: Evidence) -> None:
    """Let every engine see that of ``version``, on trial and while it serves."""
    for engine in fleet.engines.values():
        engine.seen[fleet.digests[version]] = evidence


def _record(fleet: Fleet, version: str, map50_95: float) -> None:
    found = Evaluation(
        "d" * 64, "val/data.yaml", fleet.digests[version], map50_95, 0.9, 100, 300, "test", "2026-01-01T00:00:00+00:00"
    )
    fleet.registry.record_evaluation(MODEL, version, found)


def _results(fleet: Fleet, version: str) -> list[str]:
    """Return what the audit says of the rolls to ``version``, in order."""
    return [e["result"] for e in fleet.audit() if e["action"] == "roll" and e["to"]["version"] == version]


def _rejected(fleet: Fleet) -> tuple[str, str]:
    """Return the step and the reason of a rejected rollout."""
    found = fleet.actor.status()
    assert found["state"] == "rejected"
    assert found["step"] is not None
    assert found["reason"] is not None
    return found["step"], found["reason"]


def test_a_worse_version_is_stopped_by_its_evaluation_unless_it_is_forced(fleet: Fleet) -> None:
    """The gate names both figures; no replica has loaded anything. Forced, it serves, and the record says why."""

    async def story() -> None:
        await _serving(fleet, "a")
        _record(fleet, "1", 0.60)
        _record(fleet, "2", 0.50)
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        step, reason = _rejected(fleet)
        assert step == "quality"
        assert "0.5000 against 0.6000" in reason
        assert "prepare 2" not in fleet.engines["a"].calls
        await fleet.actor.promote("2", "", "x", Order(force="the old one must go"))
        await fleet.until(fleet.all_on("2"))
        await asyncio.sleep(2 * SETTLE_S)
        judged = next(e for e in fleet.audit() if e["result"] == "judged" and e["to"]["version"] == "2")
        assert "waived (the old one must go)" in judged["reason"]
        assert judged["measured"]["quality_candidate"] == 0.5
        assert [v["waived"] for v in fleet.actor.status()["verdicts"] if v["gate"] != "latency"] == [False, False, True]
        await fleet.crash()

    run(story())


def test_gates_without_a_registry_wait_and_a_rollback_does_not(fleet: Fleet) -> None:
    """What cannot be judged is tried again later; going back needs no judgement and no registry."""

    async def story() -> None:
        await _serving(fleet, "a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        fleet.registry.down = True
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"), 0.5)
        fleet.registry.down = False
        await fleet.actor.promote("3", "", "x")
        fleet.registry.down = True
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        fleet.registry.down = False
        await fleet.until(fleet.all_on("3"))
        await fleet.crash()

    run(story())


def test_a_slow_version_is_stopped_before_it_serves(fleet: Fleet) -> None:
    """The replicas time it beside what serves, on the same images."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        for engine in fleet.engines.values():
            engine.golden = {fleet.digests["1"]: 10.0, fleet.digests["2"]: 26.0, fleet.digests["3"]: 12.0}
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        step, reason = _rejected(fleet)
        assert step == "latency"
        assert "26.0 ms a golden image against 10.0 ms" in reason
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        await fleet.crash()

    run(story())


def test_a_promotion_goes_through_shadow_and_canary_on_every_replica(fleet: Fleet) -> None:
    """Each step with its share, in its order; the status shows where it stands; the audit holds the numbers."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        _show(fleet, "2", GOOD)
        await fleet.actor.promote("2", "", "x", TRIED)
        seen: list[tuple[object, ...]] = []

        def arrived() -> bool:
            status = fleet.actor.status()
            if status["trial"] is not None and status["state"] == status["trial"]["mode"]:
                where = (status["state"], status["trial"]["number"], status["trial"]["of"], status["trial"]["fraction"])
                seen.extend([where] if where not in seen else [])
            return fleet.all_on("2")()

        await fleet.until(arrived)
        assert seen == [("shadow", 1, 3, 0.1), ("canary", 2, 3, 0.05), ("canary", 3, 3, 0.25)]
        for engine in fleet.engines.values():
            trials = [call for call in engine.calls if call.startswith("trial")]
            assert trials == [
                "trial 2 canary 0 shadow 0.1", "trial 2 canary 0.05 shadow 0.1", "trial 2 canary 0.25 shadow 0.1",
            ]  # fmt: skip
            assert engine.trial is None
            assert "end trial" not in engine.calls, "its clients would have gone back before the flip"
        await fleet.until(lambda: "retired" in _results(fleet, "2"))
        assert _results(fleet, "2") == [
            "desired", "fetched", "judged", "prepared", "shadow", "canary", "canary", "committed", "retired",
        ]  # fmt: skip
        note = next(e for e in fleet.audit() if e["result"] == "canary")
        assert note["measured"]["candidate_images"] == 400
        await fleet.crash()

    run(story())


@pytest.mark.parametrize(("order", "step"), [(Order(shadow_s=60.0), "shadow"), (Order(canary=(0.1,)), "canary")])
def test_a_failing_candidate_is_stopped_in_its_trial(fleet: Fleet, order: Order, step: str) -> None:
    """Within a second, for good, everywhere; the old version serves on and nobody was told to flip."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        _show(fleet, "2", FAILING)
        await fleet.actor.promote("2", "", "x", order)
        await fleet.until(lambda: any(engine.trial for engine in fleet.engines.values()))
        begun = asyncio.get_running_loop().time()
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        assert asyncio.get_running_loop().time() - begun < 1.0
        assert _rejected(fleet)[0] == step
        await asyncio.sleep(10.0)
        assert fleet.all_on("1")()
        assert not any(engine.trial or engine.candidate for engine in fleet.engines.values())
        assert fleet.actor.status()["generation"] == 1
        await fleet.crash()

    run(story())


def test_a_canary_that_one_replica_cannot_begin_ends_everywhere(fleet: Fleet) -> None:
    """It holds until ABORT stands, so that no client meets both versions; then all resume the old one."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        fleet.engines["b"].untriable = ReleaseRejectedError("other classes", step="canary")
        await fleet.actor.promote("2", "", "x", Order(canary=(0.1,)))
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        assert _rejected(fleet) == ("canary", "other classes")
        await fleet.until(lambda: fleet.all_on("1")() and not any(e.trial for e in fleet.engines.values()))
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("how", ["promotion", "rollback", "death of the actor"])
def test_whatever_ends_a_canary_ends_it_everywhere(fleet: Fleet, how: str) -> None:
    """And what was wanted instead serves within seconds."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        _show(fleet, "2", GOOD)
        await fleet.actor.promote("2", "", "x", Order(canary=(0.1,), step_s=3600.0))
        await fleet.until(lambda: all(engine.trial for engine in fleet.engines.values()))
        wanted = "1"
        if how == "promotion":
            await fleet.actor.promote("1", "", "x")
        elif how == "rollback":
            await fleet.actor.roll_back(20.0, "x")
            wanted = "3"
        else:
            await fleet.crash()
            fleet.registry.promote(MODEL, "1", promotion="meanwhile", reason="test")
            await fleet.begin()
        await fleet.until(lambda: fleet.all_on(wanted)() and not any(e.trial for e in fleet.engines.values()), 10.0)
        await fleet.crash()

    run(story())


MOMENTS = {
    "fetching": ("actor.before_fetch", None),
    "judging": ("actor.before_judge", None),
    "loading": ("replica.before_prepare", None),
    "on canary": ("", Order(canary=(0.1,), step_s=3600.0)),
    "canary about to begin": ("replica.before_ack", Order(canary=(0.1,), step_s=3600.0)),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("registry", ["up", "down"])
def test_a_rollback_takes_back_a_promotion_that_is_not_committed(fleet: Fleet, moment: str, registry: str) -> None:
    """What serves stays, on the replicas and in the alias; the answer waits for the end of the attempt."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        point, order = MOMENTS[moment]
        if point:
            fleet.actor.arm(point, "delay:2", None) if point.startswith("replica") else fleet.faults.arm(
                point, "delay:2"
            )
            await asyncio.sleep(1.0)
        await fleet.actor.promote("2", "", "x", order or Order())
        found = {"loading": "preparing", "fetching": "preparing", "judging": "judging"}.get(moment, "canary")
        await fleet.until(lambda: fleet.actor.status()["state"] == found)
        if moment == "on canary":
            await fleet.until(lambda: all(engine.trial for engine in fleet.engines.values()))
        fleet.registry.down = registry == "down"
        await fleet.actor.roll_back(20.0, "somebody")
        status = fleet.actor.status()
        assert (status["state"] in ("serving", "probation"), status["serving"]) == (True, "3")
        fleet.registry.down = False
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "3")  # type: ignore[union-attr]
        await asyncio.sleep(10.0)
        assert fleet.all_on("3")()
        assert not any(engine.trial for engine in fleet.engines.values())
        asked = [(e["from"]["version"], e["to"]["version"]) for e in fleet.audit() if e["action"] == "rollback"]
        assert asked == [("2", "3")]
        assert _results(fleet, "2")[-1] == "rejected"
        await fleet.actor.roll_back(20.0, "somebody")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_promotion_that_was_taken_back_stays_so_when_the_actor_restarts(fleet: Fleet) -> None:
    """The registry was down, so the alias still names it: the pin and the refusal are in the record."""

    async def story() -> None:
        await _serving(fleet, "a")
        await fleet.actor.promote("2", "", "x", Order(canary=(0.1,), step_s=3600.0))
        await fleet.until(lambda: fleet.engines["a"].trial is not None)
        fleet.registry.down = True
        await fleet.actor.roll_back(20.0, "x")
        await fleet.crash()
        await fleet.begin()
        fleet.registry.down = False
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(30.0)
        assert fleet.all_on("1")()
        assert fleet.engines["a"].trial is None
        await fleet.crash()

    run(story())


def test_two_rollbacks_in_a_row_go_two_steps_back_however_slowly_the_alias_follows(fleet: Fleet) -> None:
    """The first takes back what loads, the second what serves; the alias, still on the way of the first, ends there."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        fleet.faults.arm("actor.before_judge", "delay:30")
        fleet.faults.arm("actor.before_alias", "delay:2")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "judging")
        await fleet.actor.roll_back(20.0, "x")
        assert fleet.actor.status()["serving"] == "3"
        await fleet.actor.roll_back(20.0, "x")
        assert fleet.actor.status()["serving"] == "1"
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(40.0)
        assert fleet.all_on("1")()
        await fleet.crash()

    run(story())


def test_the_rules_and_the_settings_agree_on_their_defaults() -> None:
    """Whoever uses the state machine without the settings gets the same limits."""
    timing = Timing()
    assert timing.latency_factor == Settings.model_fields["latency_factor"].default
    assert timing.trial.least_images == Settings.model_fields["trial_images"].default
    assert timing.hold_deadline_s == Settings.model_fields["hold_deadline_s"].default
    assert timing.prepare_timeout_s == Settings.model_fields["prepare_timeout_s"].default
    tolerance = next(each for each in fields(Parts) if each.name == "quality_tolerance")
    assert tolerance.default == Settings.model_fields["quality_tolerance"].default


def test_a_replica_that_starts_during_a_canary_takes_part(fleet: Fleet) -> None:
    """It serves the committed version at once, follows, and flips with the others."""

    async def story() -> None:
        await _serving(fleet, "a")
        _show(fleet, "2", GOOD)
        await fleet.actor.promote("2", "", "x", Order(canary=(0.1,), step_s=20.0))
        await fleet.until(lambda: fleet.engines["a"].trial is not None)
        late = await fleet.start("late")
        assert late.active == (fleet.digests["1"], 1)
        await fleet.until(lambda: late.trial is not None)
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_a_breach_on_probation_flips_back_within_a_second_and_stays(fleet: Fleet) -> None:
    """The previous version answers, the bad one is refused for good, the alias follows and no poll brings it back."""

    async def story() -> None:
        await _serving(fleet, "a", "b")
        _show(fleet, "1", Evidence(Tally(1000)))
        _show(fleet, "2", Evidence(Tally(100)))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await asyncio.sleep(30.0)
        status = fleet.actor.status()
        assert status["state"] == "probation"
        assert status["probation"] is not None
        assert 565.0 < status["probation"]["left_s"] < 571.0
        assert status["probation"]["evidence"]["candidate_images"] == 200
        _show(fleet, "2", Evidence(Tally(100, errors=40)))
        begun = asyncio.get_running_loop().time()
        await fleet.until(fleet.all_on("1"))
        assert asyncio.get_running_loop().time() - begun < 1.0 + 0.5, "half a second until the next report"
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(30.0)
        assert fleet.all_on("1")()
        entry = next(e for e in fleet.audit() if e["result"] == "rolled back")
        assert (entry["to"]["version"], entry["who"]) == ("2", "rollout")
        # Of one replica or of both: the first report that is judged is enough.
        assert any(f"{seen} images failed" in entry["reason"] for seen in ("40 of 240", "80 of 280"))
        await fleet.crash()
        await fleet.begin()
        await asyncio.sleep(30.0)
        assert fleet.all_on("1")()
        await fleet.crash()

    run(story())


def test_a_version_that_behaves_is_proven_after_its_probation(fleet: Fleet) -> None:
    """It says so in the audit and is watched no more."""

    async def story() -> None:
        fleet.settings = fleet.settings.model_copy(update={"probation_s": 20.0})
        await _serving(fleet, "a", timing=replace(TIMING, probation=ProbationLimits(window_s=20.0)))
        _show(fleet, "2", Evidence(Tally(100)))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.until(lambda: fleet.actor.status()["state"] == "serving")
        await fleet.until(lambda: _results(fleet, "2")[-1] == "proven")  # the books are written behind
        await fleet.crash()

    run(story())


def test_what_was_refused_for_good_stays_refused_when_the_actor_restarts(fleet: Fleet) -> None:
    """Neither a new life nor a new cluster tries it again; a promotion does."""

    async def story() -> None:
        await _serving(fleet, "a")
        _show(fleet, "2", FAILING)
        await fleet.actor.promote("2", "", "x", Order(shadow_s=5.0))
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        told = _rejected(fleet)
        for cluster in ("the same", "new"):
            await fleet.crash()
            if cluster == "new":
                await fleet.kill("a")
                fleet.ledger = FakeLedger()
            await fleet.begin()
            if cluster == "new":
                await fleet.start("b")
            await asyncio.sleep(30.0)
            assert fleet.all_on("1")()
            assert _rejected(fleet) == told
        assert _results(fleet, "2").count("shadow") == 0
        assert _results(fleet, "2").count("rejected") == 1
        fleet.engines["b"].seen.clear()
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())
