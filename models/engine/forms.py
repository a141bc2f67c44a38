"""Which shapes are warm: forms that a runtime makes for one shape, within a budget of memory.

A form costs tens of megabytes and most of a second to make, so a shape must earn it: by coming often, and more often
than the shapes whose forms would have to go. Counts fade, so that yesterday's traffic does not keep today's out.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from models.engine.backends.backend import Session, Shape

EARNED_AFTER = 16
"""Images of a shape before forms are made for lanes: about as many as the forms must serve to earn their making."""
ALONE_EARNED_AFTER = 8
"""The same for a call that is alone: then there is time, and whoever sends one image after the other waits for it."""
ALONE_KNOWN_AFTER = 2
"""The same for a shape that has forms for lanes: it is known to come often, and now it comes alone."""
FADE_EVERY = 4096
"""Images after which all counts are halved, and forms that could not be made may be tried again."""
CLEARLY_MORE = 2
"""A shape displaces others only if it came over this many times as often: making forms in turns would cost more."""


class Form(NamedTuple):
    """What is made warm: ``shape`` in ``session``, for its lanes or for a call that is ``alone``.

    copy: 0 for the first lane that runs the shape; 1 and up for those that run it at the same time.
    """

    session: Session
    shape: Shape
    alone: bool = False
    copy: int = 0

    @property
    def cost(self) -> int:
        """Return an estimate of the bytes it takes."""
        return self.session.shape_cost(self.shape, alone=self.alone, copy=self.copy)


@dataclass(slots=True, eq=False)
class FormCache:
    """The forms of all loaded releases of one engine, and the memory that releases leave for them.

    budget: bytes for releases and forms together. Safe from any thread; ``warm`` and ``make_room`` block and belong on
    a worker thread.
    """

    budget: int
    _warm: dict[Form, int] = field(default_factory=dict)
    _held: dict[Session, int] = field(default_factory=dict)
    _seen: Counter[Form] = field(default_factory=Counter)
    _noted: int = 0
    _useless: set[Form] = field(default_factory=set)
    _failed: set[Form] = field(default_factory=set)
    _making: Form | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, session: Session, size: int) -> None:
        """Count ``size`` bytes for ``session`` itself until ``drop``."""
        with self._lock:
            self._held[session] = size

    def make_room(self, size: int) -> None:
        """Forget the least used forms until ``size`` bytes are free, or no form is left."""
        with self._lock:
            gone = self._victims(size, most=None)
            if gone is None:
                gone = list(self._warm)
            self._evict(gone)
        _forget(gone)

    def note(self, form: Form, images: int) -> bool:
        """Count ``images`` on ``form``; return whether it has earned to be made now. ``warm`` must follow then.

        Forms of a session that is not held do not count.
        """
        with self._lock:
            if form.session not in self._held:
                return False
            self._seen[form] += images
            self._noted += images
            if self._noted >= FADE_EVERY:
                self._noted = 0
                self._seen = Counter({each: seen // 2 for each, seen in self._seen.items() if seen > 1})
                self._failed.clear()
            seen = self._seen[form]
            earned = EARNED_AFTER
            if form.alone:
                known = form._replace(alone=False) in self._warm
                earned = ALONE_KNOWN_AFTER if known else ALONE_EARNED_AFTER
            if seen < earned or self._making is not None or form in self._warm:
                return False
            if form in self._useless or form in self._failed:
                return False
            if form.copy and form._replace(copy=form.copy - 1) not in self._warm:
                return False
            if self._victims(form.cost, most=seen // CLEARLY_MORE) is None:
                return False
            self._making = form
            return True

    def demote(self, session: Session) -> None:
        """Let the forms of ``session`` count so little that those of what serves instead may displace them."""
        with self._lock:
            for form in self._seen:
                if form.session is session:
                    self._seen[form] //= 2 * CLEARLY_MORE

    def inherit(self, session: Session, ancestor: Session) -> tuple[Form, ...]:
        """Return forms of ``session`` like those of ``ancestor``, the most used first, and let them count as much."""
        with self._lock:
            forms = sorted((each for each in self._warm if each.session is ancestor), key=self._count, reverse=True)
            heirs = []
            for form in forms:
                heir = form._replace(session=session)
                self._seen[heir] = max(self._seen[heir], self._seen[form])
                heirs.append(heir)
            return tuple(heirs)

    def warm(self, form: Form) -> bool:
        """Make ``form`` unless it exists or would push out one that is used as much; return whether it is warm.

        A form that its session finds useless is not tried again; one that failed, for which there may be memory later,
        not before the counts fade. Raises BackendError.
        """
        try:
            cost = form.cost
            with self._lock:
                if form in self._warm:
                    return True
                victims = None if form in self._useless else self._victims(cost, most=self._seen[form])
                if victims is None:
                    return False
                self._evict(victims)
                self._warm[form] = cost
            _forget(victims)
            try:
                kept = form.session.warm(form.shape, alone=form.alone, copy=form.copy)
            except BaseException:
                self._refuse(form, self._failed)
                raise
            if not kept:
                self._refuse(form, self._useless)
            return kept
        finally:
            with self._lock:
                if self._making == form:
                    self._making = None

    def give_up(self, form: Form) -> None:
        """Say that ``warm`` will not follow after all."""
        with self._lock:
            if self._making == form:
                self._making = None

    def forms(self, session: Session) -> tuple[Form, ...]:
        """Return the warm forms of ``session``, the most used first."""
        with self._lock:
            mine = (form for form in self._warm if form.session is session)
            return tuple(sorted(mine, key=self._count, reverse=True))

    def used(self) -> int:
        """Return the bytes that releases and forms take together, by estimate; the budget unless releases exceed it."""
        with self._lock:
            return sum(self._held.values()) + sum(self._warm.values())

    def drop(self, session: Session) -> None:
        """Forget all about ``session``, which is about to be closed."""
        with self._lock:
            self._held.pop(session, None)
            self._warm = {form: cost for form, cost in self._warm.items() if form.session is not session}
            self._useless = {form for form in self._useless if form.session is not session}
            self._failed = {form for form in self._failed if form.session is not session}
            self._seen = Counter({form: seen for form, seen in self._seen.items() if form.session is not session})

    def _count(self, form: Form) -> int:
        return self._seen[form]

    def _victims(self, size: int, most: int | None) -> list[Form] | None:
        """Return the least used forms that must go for ``size`` bytes; None if too few are used less than ``most``."""
        missing = size + sum(self._held.values()) + sum(self._warm.values()) - self.budget
        victims: list[Form] = []
        for form in sorted(self._warm, key=self._count):
            if missing <= 0 or (most is not None and self._seen[form] >= most):
                break
            victims.append(form)
            missing -= self._warm[form]
        return victims if missing <= 0 else None

    def _refuse(self, form: Form, why: set[Form]) -> None:
        with self._lock:
            self._warm.pop(form, None)
            why.add(form)

    def _evict(self, forms: list[Form]) -> None:
        for form in forms:
            del self._warm[form]


def _forget(forms: list[Form]) -> None:
    for form in forms:
        form.session.forget(form.shape, alone=form.alone, copy=form.copy)
