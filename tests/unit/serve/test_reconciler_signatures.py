"""Signatures in the whole rollout without Ray: promotion, rollback, restart with and without the registry."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from rollout_world import MODEL

from models.errors import ReleaseRejectedError
from models.weights.keys import KeyFolder
from serve.fake_time import run
from serve.settings import Settings

if TYPE_CHECKING:
    from rollout_world import Fleet


def sign(fleet: Fleet, number: str, *, as_number: str | None = None, key: str = "mine") -> str:
    """Sign a version in the registry with a trusted key, or put another version's signature there; return the text."""
    folder = KeyFolder(fleet.settings.keys_folder)
    if key not in {each.name for each in folder.trusted_or_none()}:
        folder.new(key)
    found = folder.signing()
    assert found is not None
    text = found[1].sign(MODEL, as_number or number, fleet.digests[number])
    fleet.registry.sign_version(MODEL, number, text)
    return text


def demand(fleet: Fleet) -> None:
    """Demand signatures from the next life of the actor on."""
    fleet.settings = Settings(**fleet.settings.model_dump() | {"require_signed": True})


def refused(fleet: Fleet) -> tuple[str, str]:
    """Return step and reason of the rejection that stands."""
    status = fleet.actor.status()
    assert status["state"] == "rejected"
    return status["step"], status["reason"]


async def promoted(fleet: Fleet, number: str) -> None:
    """Promote and wait until every replica answers with it."""
    await fleet.actor.promote(number, "", "x")
    await fleet.until(fleet.all_on(number))


def test_a_signed_version_serves_and_the_record_says_who_signed_it(fleet: Fleet) -> None:
    """The verdict of the gate stands in the status and in the audit's line."""

    async def story() -> None:
        sign(fleet, "1")
        sign(fleet, "2")
        await fleet.begin()
        await fleet.start("a")
        await promoted(fleet, "2")
        verdict = next(each for each in fleet.actor.status()["verdicts"] if each["gate"] == "signature")
        assert verdict["passed"]
        assert "signed by mine (key " in verdict["reason"]
        await asyncio.sleep(10.0)
        judged = [entry["reason"] for entry in fleet.audit() if entry["result"] == "judged"]
        assert any("signature: all files are as registered; signed by mine" in reason for reason in judged)

    run(story())


@pytest.mark.parametrize("moved", ["from version 1", "from other content", "by a stranger", "none at all"])
def test_a_wrong_signature_is_refused_for_good_and_nothing_is_loaded(fleet: Fleet, moved: str) -> None:
    """Version 1 serves on; only a new promotion tries it again."""

    async def story() -> None:
        sign(fleet, "1")
        if moved == "none at all":
            demand(fleet)
        elif moved == "by a stranger":
            sign(fleet, "2", key="stranger")
            KeyFolder(fleet.settings.keys_folder).distrust("stranger")
        elif moved == "from version 1":
            sign(fleet, "2", as_number="1")
        else:
            fleet.registry.sign_version(MODEL, "2", sign(fleet, "3", as_number="2"))
        await fleet.begin()
        engine = await fleet.start("a")
        await fleet.actor.promote("2", "", "x")
        await fleet.until(lambda: fleet.actor.status()["state"] == "rejected")
        step, reason = refused(fleet)
        assert step == "verify"
        assert {"by a stranger": "not trusted", "none at all": "not signed"}.get(moved, "does not fit") in reason
        assert fleet.actor.status()["serving"] == "1"
        assert "prepare 2" not in engine.calls
        await asyncio.sleep(10.0)
        (entry,) = [e for e in fleet.audit() if e["result"] == "rejected"]
        assert entry["reason"].startswith("verify: ")
        sign(fleet, "2")
        await promoted(fleet, "2")

    run(story())


def test_a_rollback_obeys_the_rule_and_asks_nobody(fleet: Fleet) -> None:
    """What was signed by a key that has been distrusted since does not come back."""

    async def story() -> None:
        sign(fleet, "1")
        sign(fleet, "2", key="next")
        await fleet.begin()
        await fleet.start("a")
        await promoted(fleet, "2")
        KeyFolder(fleet.settings.keys_folder).distrust("mine")
        fleet.registry.down = True
        await fleet.actor.roll_back(20.0, "x")
        assert refused(fleet)[0] == "verify"
        assert fleet.actor.status()["serving"] == "2"

    run(story())


def test_a_rollback_to_a_trusted_version_works_while_the_registry_is_down(fleet: Fleet) -> None:
    """Also where signatures are demanded, and in a new life of the actor."""

    async def story() -> None:
        demand(fleet)
        for number in ("1", "2"):
            sign(fleet, number)
        await fleet.begin()
        await fleet.start("a")
        await promoted(fleet, "2")
        await asyncio.sleep(1.0)
        await fleet.crash()
        fleet.registry.down = True
        await fleet.begin()
        await fleet.until(fleet.all_on("2"))
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))

    run(story())


@pytest.mark.parametrize("spoilt", ["", "moved", "deleted", "file"])
def test_a_restart_without_the_registry_verifies_what_lies_in_the_cache(fleet: Fleet, spoilt: str) -> None:
    """Signature and files beside it: sound, they serve; tampered with, nothing does."""

    async def story() -> None:
        demand(fleet)
        text = sign(fleet, "1")
        await fleet.begin()
        await fleet.start("a")
        await asyncio.sleep(1.0)
        await fleet.crash()
        await fleet.kill("a")
        fleet.ledger = type(fleet.ledger)()
        fleet.registry.down = True
        digest = fleet.digests["1"]
        (kept,) = fleet.settings.cache.glob(f"signatures/{digest}/*")
        if spoilt == "moved":
            kept.write_text(KeyFolder(fleet.settings.keys_folder).signing()[1].sign(MODEL, "2", digest))  # type: ignore[index]
        elif spoilt == "deleted":
            kept.unlink()
        elif spoilt == "file":
            graph = next(fleet.settings.cache.glob(f"releases/{digest}/*.onnx"))
            graph.write_bytes(graph.read_bytes()[:-1] + b"x")
        await fleet.begin()
        if not spoilt:
            await fleet.start("b")
            assert fleet.all_on("1")()
            assert kept.read_text() == text
            return
        start = asyncio.create_task(fleet.start("b"))
        await asyncio.sleep(30.0)
        assert fleet.actor.status()["serving"] is None
        words = {"moved": "does not fit", "deleted": "cannot be reached", "file": "is damaged"}[spoilt]
        assert any(words in entry["reason"] for entry in fleet.audit() if entry["result"] == "rejected")
        if start.done():
            assert isinstance(start.exception(), Exception)
        else:
            start.cancel()

    run(story())


def test_a_replica_that_starts_later_refuses_a_distrusted_version(fleet: Fleet) -> None:
    """Who serves it goes on; nobody else begins."""

    async def story() -> None:
        sign(fleet, "1")
        await fleet.begin()
        engine = await fleet.start("a")
        KeyFolder(fleet.settings.keys_folder).distrust("mine")
        with pytest.raises(ReleaseRejectedError, match="not trusted here"):
            await fleet.start("b")
        assert engine.answering

    run(story())


def test_an_unsigned_fleet_reads_no_key(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not sign pays nothing for signatures."""

    def scandir(path: object) -> object:
        assert "keys" not in str(path)
        return original(path)  # type: ignore[call-overload]

    original = os.scandir
    monkeypatch.setattr("models.weights.keys.os.scandir", scandir)

    async def story() -> None:
        await fleet.begin()
        await fleet.start("a")
        await promoted(fleet, "2")
        await fleet.actor.roll_back(20.0, "x")
        await fleet.until(fleet.all_on("1"))

    run(story())
