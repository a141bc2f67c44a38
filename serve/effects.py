"""Carries out what the rollout's machine wants done for one model; what comes of it is fed back as an event."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from models.errors import ReleaseError, SteelyardError
from models.rollout import choice, state
from models.rollout.messages import Failure
from serve.judging import judge
from serve.outbox import SETTLE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from models.rollout.messages import Admission, Target
    from serve.alias import Alias
    from serve.books import Books
    from serve.programs import Programs
    from serve.reconciler import Parts

_log = logging.getLogger(__name__)


class Effects:
    """Starts effects; none of them is waited for."""

    def __init__(
        self,
        model: str,
        parts: Parts,
        *,
        now: Callable[[], state.State],
        feed: Callable[[state.Event], None],
        spawn: Callable[[Coroutine[object, object, None]], None],
        admit: Callable[[str, Admission], None],
        alias: Alias,
        books: Books,
        programs: Programs,
    ) -> None:
        """Start nothing yet.

        Args:
            model: whose rollout it is.
            parts: what all models share.
            now: returns the model's state.
            feed: takes the event in which an effect ends.
            spawn: runs an effect that takes time.
            admit: tells a replica what became of its wish to be admitted.
            alias: moved back by a rollback.
            books: written to.
            programs: run what needs the ledger.
        """
        self._model, self._parts, self._now = model, parts, now
        self._feed, self._spawn, self._admit = feed, spawn, admit
        self._alias, self._books, self._programs = alias, books, programs
        self._untidy = False

    def start(self, effect: state.Effect) -> None:  # noqa: C901 - one arm an effect
        """Carry out one effect, or begin to."""
        match effect:
            case state.Fetch(target):
                self._spawn(self._fetch(target))
            case state.Judge():
                self._spawn(self._judge(effect))
            case state.Claim() | state.Decide() | state.RecordMember() | state.ForgetMember():
                self._programs.queue(effect, self._now().incarnation)
            case state.Admit(replica, answer):
                self._admit(replica, answer)
            case state.Announce():
                self._announce(effect)
            case state.Audit():
                self._write_down(effect)
            case state.Note():
                self._note(effect)
            case state.SavePin():
                self._books.save()
            case state.MoveAlias(pin):
                self._spawn(self._alias.move_back(pin))
            case state.Depose():
                _log.error("a later life of the rollout actor exists; this one ends")
                self._parts.depose()

    def tidy(self) -> None:
        """Let go of releases that nobody needs any more, once the rollout that ended has come to rest."""
        if self._untidy and self._now().phase == "idle":
            self._untidy = False
            self._spawn(self._tidy())

    async def _tidy(self) -> None:
        await self._parts.sleep(SETTLE_S)
        # Else what is under way ends in a tidying of its own.
        if self._now().phase == "idle":
            self._parts.tidy()

    async def _fetch(self, target: Target) -> None:
        self._feed(await self._fetched(target))

    async def _judge(self, effect: state.Judge) -> None:
        self._feed(await self._judged(effect))

    async def _judged(self, effect: state.Judge) -> state.Event:
        target, parts = effect.target, self._parts
        try:
            await parts.faults.hit("actor.before_judge")
            async with asyncio.timeout(parts.prepare_timeout_s):
                verdicts = await judge(
                    self._model,
                    effect.serving,
                    target,
                    effect.order,
                    depot=parts.depot,
                    registry=parts.registry,
                    in_registry_thread=parts.in_registry_thread,
                    tolerance=parts.quality_tolerance,
                )
        except ReleaseError as error:
            failure = Failure(error.step, str(error), permanent=error.permanent)
        except SteelyardError as error:
            failure = Failure("quality", str(error), permanent=False)
        except TimeoutError:
            failure = Failure("quality", "the gates took too long; it is tried again later", permanent=False)
        except Exception:  # noqa: BLE001 - the machine waits for an event, whatever went wrong
            _log.exception("judging version %s of %s failed", target.version, self._model)
            failure = Failure("quality", "judging it failed for a reason that only the log tells", permanent=False)
        else:
            return state.Judged(target, verdicts)
        return state.JudgeFailed(target, failure)

    async def _fetched(self, target: Target) -> state.Event:
        committed, desired = self._now().committed, self._now().desired
        back = committed.back if committed else None
        named = (self._model, target.version, target.digest)
        if back is not None and (back.version, back.digest) == (target.version, target.digest):
            # The fleet has what served before loaded, and a rollback cannot wait; a replica without it asks for it.
            have = self._parts.depot.prove(*named, signature="")
        else:
            told = desired is not None and (desired.version, desired.digest) == (target.version, target.digest)
            have = self._parts.depot.stock(*named, signature=desired.signature if desired and told else None)
        try:
            await asyncio.wait_for(have, self._parts.prepare_timeout_s)
        except ReleaseError as error:
            failure = Failure(error.step, str(error), permanent=error.permanent)
        except SteelyardError as error:
            failure = Failure("fetch", str(error), permanent=False)
        except TimeoutError:
            failure = Failure("fetch", "the store is too slow; it is tried again later", permanent=False)
        except Exception:  # noqa: BLE001 - the machine waits for an event, whatever went wrong
            _log.exception("fetching version %s of %s failed", target.version, self._model)
            failure = Failure("fetch", "fetching it failed for a reason that only the log tells", permanent=False)
        else:
            return state.Fetched(target)
        return state.FetchFailed(target, failure)

    def _announce(self, effect: state.Announce) -> None:
        attempt = effect.attempt
        target, generation = attempt.target, attempt.generation
        _log.info("version %s of %s is committed as generation %d", target.version, self._model, generation)
        self._programs.queue(effect, self._now().incarnation)
        self._books.save_soon()
        self._books.write("roll", attempt.previous, target, result="committed", generation=generation)
        self._books.record_serving(attempt)
        self._untidy = True

    def _note(self, effect: state.Note) -> None:
        target, serving = effect.target, choice.serving(self._now())
        _log.info("version %s of %s is %s. %s", target.version, self._model, effect.result, effect.reason)
        before, after = (target, serving) if effect.result == "retired" else (serving, target)
        self._books.write("roll", before, after, result=effect.result, reason=effect.reason, measured=effect.measured)

    def _write_down(self, effect: state.Audit) -> None:
        target, failure = effect.target, effect.failure
        self._untidy = True
        why = f"{failure.step}: {failure.reason}"
        _log.warning("version %s of %s was %s: %s", target.version, self._model, effect.result, why)
        self._books.write("roll", choice.serving(self._now()), target, result=effect.result, reason=why)
        if failure.permanent:
            self._books.save()
