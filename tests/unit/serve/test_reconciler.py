"""The whole rollout without Ray: what is promoted, rolled back and refused. Deaths are in test_reconciler_faults.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rollout_world import MODEL

from models.errors import ReleaseFaultError, ReleaseRejectedError, UnknownVersionError
from models.weights.cache import Committed, CommittedStore
from models.weights.manifest import ONNX
from serve.fake_time import run
from serve.outbox import SETTLE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollout_world import Fleet


def test_nothing_is_written_before_the_replicas_have_heard_of_a_commit(fleet: Fleet) -> None:
    """They hold until then: the record, the audit, the registry and the cache follow a tenth of a second later."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.until(fleet.all_on("1"))
        await asyncio.sleep(10.0)
        store = CommittedStore(fleet.settings.root)

        def known() -> list[object]:
            record = store.load(MODEL)
            audit = [e["to"]["version"] for e in fleet.audit() if e["result"] == "committed"]
            held = fleet.depot.held if fleet.depot is not None else ()
            kept = [number for number in ("1", "2", "3") if fleet.digests[number] in held]
            return [record and record.version, audit, fleet.registry.serving[MODEL][1], kept]

        for number in ("2", "3"):
            before = known()
            await fleet.actor.promote(number, "", "x")
            await fleet.until(fleet.all_on(number))
            assert known() == [*before[:3], [*before[3], number]]  # type: ignore[misc]
            await asyncio.sleep(2 * SETTLE_S)
            assert known()[0] == number
            assert known()[2] == number
        assert known() == ["3", ["1", "2", "3"], "3", ["2", "3"]]

    run(story())


def test_two_replicas_start_roll_forward_and_back(fleet: Fleet) -> None:
    """Start on the promoted version, promote, roll back: both flip, the alias follows, it is written down."""

    async def story() -> None:
        await fleet.begin()
        await asyncio.gather(fleet.start("a"), fleet.start("b"))
        await fleet.until(fleet.all_on("1"))
        await fleet.actor.promote("2", "better", "somebody")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.roll_back(20.0, "somebody")
        assert fleet.actor.status()["serving"] == "1"
        await fleet.until(fleet.all_on("1"))
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await fleet.until(lambda: fleet.registry.serving.get(MODEL, (0, "", ""))[1] == "1")
        await asyncio.sleep(10.0)
        assert fleet.all_on("1")()
        entries = [
            (e["action"], e["result"], (e["from"] or e["to"])["version"], e["to"]["version"]) for e in fleet.audit()
        ]
        assert entries == [
            *(("roll", result, "1", "1") for result in ("desired", "fetched", "committed")),
            ("roll", "desired", "1", "2"),
            ("promote", "accepted", "1", "2"),
            *(("roll", result, "1", "2") for result in ("fetched", "judged", "prepared", "committed", "retired")),
            ("roll", "desired", "2", "1"),
            ("rollback", "accepted", "2", "1"),
            *(("roll", result, "2", "1") for result in ("fetched", "prepared", "committed", "retired")),
        ]
        record = CommittedStore(fleet.settings.root).load(MODEL)
        assert record is not None
        assert (record.version, record.previous_version, record.pin) == ("1", None, None)
        await fleet.crash()

    run(story())


def test_a_second_rollback_does_not_bring_the_bad_version_back(fleet: Fleet) -> None:
    """While it is under way or not yet in the alias it is the same rollback; later it is refused; promoting works."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        fleet.faults.arm("actor.before_alias", "delay:5")
        await asyncio.gather(fleet.actor.roll_back(20.0, "x"), fleet.actor.roll_back(20.0, "x"))
        generation = fleet.actor.status()["generation"]
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(10.0)
        with pytest.raises(ReleaseRejectedError, match="no earlier version of m to return to: version 1") as caught:
            await fleet.actor.roll_back(20.0, "x")
        assert caught.value.step == "rollback"
        assert fleet.all_on("1")()
        assert fleet.actor.status()["generation"] == generation == 3
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()

    run(story())


def test_a_refused_release_is_let_go_at_once(fleet: Fleet) -> None:
    """Neither memory nor disk keeps it until the next commit; what serves, and what served before, stays."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a", v3=ReleaseRejectedError("it is blind", step="golden"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.promote("3", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(1.0)
        assert fleet.depot is not None
        assert fleet.depot.held == {fleet.digests["1"], fleet.digests["2"]}
        kept = {path.name for path in (fleet.settings.cache / "releases").iterdir()}
        assert kept == {fleet.digests["1"], fleet.digests["2"]}
        await fleet.crash()

    run(story())


def test_a_release_in_backoff_and_the_last_good_of_other_models_are_kept(fleet: Fleet) -> None:
    """What is tried again soon is not fetched again, and a model that is not served now can come back."""

    async def story() -> None:
        stranger = "ef" * 32
        fleet.cache.put(stranger, {"f": np.zeros(1, np.uint8)})
        CommittedStore(fleet.settings.root).save(Committed("other", 3, "1", stranger))
        await fleet.begin()
        await fleet.start("a", v2=ReleaseFaultError("no memory", step="load"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(0.1)
        assert fleet.depot is not None
        assert fleet.digests["2"] in fleet.depot.held
        assert fleet.cache.get(stranger) is not None
        await fleet.crash()

    run(story())


def test_a_rollback_with_the_registry_down_stands_until_a_newer_promotion(fleet: Fleet) -> None:
    """The flip does not wait for the registry; no poll brings the bad version back; a restart does not either."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        fleet.registry.down = True
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        await fleet.crash()
        await fleet.begin()
        await asyncio.sleep(30.0)
        assert fleet.all_on("1")()
        fleet.registry.down = False
        await fleet.until(lambda: fleet.registry.desired(MODEL).version == "1")  # type: ignore[union-attr]
        await asyncio.sleep(10.0)
        assert fleet.all_on("1")()
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        await fleet.crash()

    run(story())


def test_a_rollback_hardly_waits_for_a_registry_that_hangs(fleet: Fleet) -> None:
    """It should serve within 100 ms; of that, a registry that says nothing may take 40."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))

        async def hang(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        fleet.actor._alias._in_thread = hang
        loop = asyncio.get_running_loop()
        asked = loop.time()
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))
        # What the work itself takes is the machine's own time, which may be busy.
        assert loop.time() - asked < 1.0
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("step", ["golden", "load"])
def test_a_version_that_one_replica_refuses_serves_nowhere(fleet: Fleet, step: str) -> None:
    """One blind replica is enough; the version is not tried again until it is promoted again."""

    async def story() -> None:
        await fleet.begin()
        blind = await fleet.start("a", v2=ReleaseRejectedError("it is blind", step=step))
        other = await fleet.start("b")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        await asyncio.sleep(120.0)
        found = fleet.actor.status()
        assert (found["step"], found["reason"], found["serving"]) == (step, "it is blind", "1")
        assert fleet.all_on("1")()
        assert blind.calls.count("prepare 2") == 1
        assert other.candidate is None
        del blind.refuse[fleet.digests["2"]]
        await fleet.actor.promote("2", "", "x")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_a_transient_failure_is_tried_again(fleet: Fleet) -> None:
    """No memory now is not no memory for ever."""

    async def story() -> None:
        await fleet.begin()
        engine = await fleet.start("a", v2=ReleaseFaultError("no memory", step="load"))
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: engine.calls.count("prepare 2") == 3)
        engine.refuse.clear()
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_version_is_refused_at_verify(fleet: Fleet, damage: Callable[[bytes], bytes]) -> None:
    """A byte lost or a bit flipped in the store: refused before any replica hears of it."""

    async def story() -> None:
        stored = fleet.registry.files[MODEL, "2"]
        stored[ONNX] = damage(stored[ONNX])
        await fleet.begin()
        engine = await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        assert fleet.actor.status()["step"] == "verify"
        await asyncio.sleep(30.0)
        assert "prepare 2" not in engine.calls
        assert [e["result"] for e in fleet.audit() if e["to"]["version"] == "2"] == ["desired", "accepted", "rejected"]
        await fleet.crash()

    run(story())


def test_a_version_without_its_ready_tag_does_not_exist(fleet: Fleet) -> None:
    """An alias moved by hand to an unfinished version is refused; it is taken as soon as it is ready."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        fleet.registry.set_state(MODEL, "2", "")
        with pytest.raises(ReleaseRejectedError):
            await fleet.actor.promote("2", "", "x")
        fleet.registry.promote(MODEL, "2", promotion="by hand", reason="")
        fleet.actor.hint()
        await fleet.until(lambda: fleet.actor.status()["reason"] == "version 2 is not ready")
        fleet.registry.set_state(MODEL, "2", "ready")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_a_first_version_that_fails_is_told_to_the_starting_replica(fleet: Fleet) -> None:
    """Nothing was ever committed: the start raises the reason; a later promotion lets the next start succeed."""

    async def story() -> None:
        await fleet.begin()
        with pytest.raises(ReleaseRejectedError, match="it is blind"):
            await fleet.start("a", v1=ReleaseRejectedError("it is blind", step="golden"))
        with pytest.raises(ReleaseRejectedError, match="it is blind"):
            await fleet.start("b")
        assert fleet.actor.status()["state"] == "rejected"
        await fleet.actor.promote("2", "", "x")
        await fleet.start("c")
        await fleet.until(fleet.all_on("2"))
        await fleet.crash()

    run(story())


def test_nothing_promoted_is_a_clear_error(fleet: Fleet) -> None:
    """A replica of a model without any promoted version says what to do."""

    async def story() -> None:
        fleet.registry._desired.clear()
        await fleet.begin()
        with pytest.raises(ReleaseFaultError, match="steelyard promote"):
            await fleet.start("a")
        with pytest.raises(ReleaseRejectedError, match="only one version"):
            await fleet.actor.roll_back(1.0, "x")
        with pytest.raises(UnknownVersionError):
            await fleet.actor.promote("99", "", "x")
        await fleet.crash()

    run(story())


def test_many_promotions_in_a_row_end_on_the_last(fleet: Fleet) -> None:
    """A hundred promotions in ten seconds: no generation is committed twice, the last one serves."""

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await fleet.start("b")
        for number in range(100):
            await fleet.actor.promote(str(1 + number % 3), "", "x")
            await asyncio.sleep(0.1)
        await fleet.actor.promote("3", "", "x")
        await fleet.until(fleet.all_on("3"))
        flips = [int(call.split()[1]) for call in fleet.engines["a"].calls if call.startswith("flip")]
        assert flips == sorted(set(flips))
        await fleet.crash()

    run(story())
