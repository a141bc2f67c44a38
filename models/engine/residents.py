"""The releases of one engine: prepared on a worker thread, moved through the slots, freed off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from models.engine.prepare import AbandonedError
from models.engine.priority import FORM_NICENESS, give_way, name_loader
from models.engine.slots import Slots
from models.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engine.backends.backend import Session
    from models.engine.forms import Form
    from models.engine.observe import Observer
    from models.engine.prepare import Preparer
    from models.engine.slots import Lease
    from models.types import Release

logger = logging.getLogger(__name__)

FREE_TURN_S = 2.0
"""Longest that freeing a version waits for others: forms of the new one wait behind it."""
CLOSING = "the service is shutting down; send the request again"


class Residents:
    """Owns slots, warm forms and the one thread on which sessions are made, warmed and closed.

    Its methods belong to one event loop's thread.
    """

    def __init__(self, preparer: Preparer, observer: Observer, clock: Callable[[], float] = time.monotonic) -> None:
        """Hold nothing yet; ``clock`` gives seconds, monotonic."""
        self.slots = Slots(self._free)
        self._preparer = preparer
        self._observer = observer
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="prepare", initializer=name_loader)
        self._preparing = asyncio.Lock()
        self._abandoned: threading.Event | None = None
        self._closed = False
        self._closing = threading.Event()

    async def prepare(self, release: Release) -> None:
        """Make ``release`` the candidate, unless its content is resident already.

        Raises ReleaseRejectedError, ReleaseFaultError, or UnavailableError while closing. Cancelling frees what was
        loaded.
        """
        async with self._preparing:
            if self._closed:
                raise UnavailableError(CLOSING)
            resident = self.slots.find(release.digest)
            if resident is not None:
                resident.renamed = None if resident.release.version == release.version else release
                return
            if self.slots.candidate is not None:
                self.slots.discard(self.slots.candidate.release.digest)
            begun = self._clock()
            session = await self._load(release)
            self.slots.offer(release, session)
            self._observer.prepared(release.ident, self._clock() - begun)

    def flip(self, digest: str, generation: int) -> Release:
        """Let the resident release of ``digest`` serve; return it. Raises ReleaseFaultError (step ``commit``)."""
        before = self.slots.active
        release = self.slots.flip(digest, generation)
        if before is not None and before is not self.slots.active:
            self._preparer.forms.demote(before.session)
        return release

    def warm_if_earned(self, form: Form, images: int) -> None:
        """Count ``images`` on ``form``; make it in the background once it has earned it."""
        if self._closed or not self._preparer.forms.note(form, images):
            return
        lease = self.slots.lease()
        if lease is None or lease.session is not form.session:
            self._preparer.forms.give_up(form)
            if lease is not None:
                lease.end()
            return
        try:
            work = asyncio.get_running_loop().run_in_executor(self._worker, self._warm, form)
        except RuntimeError:  # the worker is shut down
            self._preparer.forms.give_up(form)
            lease.end()
            return
        work.add_done_callback(lambda done: self._warmed(lease, form, done))

    async def close(self) -> None:
        """Abandon what is being prepared, retire everything and wait for the worker. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._closing.set()
        if self._abandoned is not None:
            self._abandoned.set()
        async with self._preparing:
            self.slots.clear()
        await asyncio.to_thread(self._worker.shutdown)

    async def _load(self, release: Release) -> Session:
        active = self.slots.active
        kept = [each.release for each in (active, self.slots.previous) if each is not None]
        abandoned = self._abandoned = threading.Event()
        loading = asyncio.get_running_loop().run_in_executor(
            self._worker,
            self._preparer.prepare,
            release,
            None if active is None else active.release,
            None if active is None else active.session,
            abandoned,
            kept,
        )
        try:
            session = await asyncio.shield(loading)
        except asyncio.CancelledError:
            abandoned.set()
            loading.add_done_callback(lambda done: self._free_abandoned(release, done))
            raise
        except AbandonedError:
            raise UnavailableError(CLOSING) from None
        finally:
            self._abandoned = None
        if self._closed:
            self._free(release, session)
            raise UnavailableError(CLOSING)
        return session

    def _free_abandoned(self, release: Release, loading: asyncio.Future[Session]) -> None:
        # It may have finished in the very tick in which its caller was cancelled; else it has freed itself.
        if not loading.cancelled() and loading.exception() is None:
            self._free(release, loading.result())

    def _warm(self, form: Form) -> bool:
        give_way(FORM_NICENESS)
        return self._preparer.forms.warm(form)

    def _warmed(self, lease: Lease, form: Form, done: asyncio.Future[bool]) -> None:
        lease.end()
        if done.cancelled():
            self._preparer.forms.give_up(form)
            return
        error = done.exception()
        if error is not None:
            logger.warning("warming %d x %d failed: %s", *form.shape, error)
        if error is not None or done.result():
            self._observer.compiled(lease.release.ident, form.shape, error)

    def _free(self, release: Release, session: Session) -> None:
        self._observer.freed(release.ident)
        try:
            self._worker.submit(self._close_session, session)
        except RuntimeError:  # a lease outlived the worker
            threading.Thread(target=self._close_session, args=(session,), daemon=True).start()

    def _close_session(self, session: Session) -> None:
        try:
            # A swap retires a version in every replica at once, and to free one takes as long as several images.
            with self._preparer.processors.loading(self._closing, deadline_s=FREE_TURN_S):
                self._preparer.forms.drop(session)
                session.close()
        except Exception:
            logger.exception("a retired release could not be freed")
