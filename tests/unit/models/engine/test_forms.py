"""Warm forms: earned by use, within the budget, never in turns, and tried again only where that may help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from models.engine.backends.backend import Plan
from models.engine.backends.fake import FakeBackend
from models.engine.forms import (
    ALONE_EARNED_AFTER,
    ALONE_KNOWN_AFTER,
    CLEARLY_MORE,
    EARNED_AFTER,
    FADE_EVERY,
    Form,
    FormCache,
)
from models.errors import BackendError
from models.types import Contract, Release, Thresholds

if TYPE_CHECKING:
    from models.engine.backends.fake import FakeSession

PLENTY = 10**9
SMALL, OTHER, THIRD = (32, 32), (32, 64), (64, 32)


def new_session(lanes: int = 1) -> FakeSession:
    """Return a session whose forms cost three bytes a pixel and lane."""
    contract = Contract("detect", ("apple",), 32, 640, "end2end")
    return FakeBackend(plan=Plan(lanes, 1)).load(Release("till", "1", "a" * 64, contract, Thresholds(), {}))


def cache_of(budget: int, *sessions: FakeSession) -> FormCache:
    """Return a cache that holds the sessions, which cost nothing themselves."""
    cache = FormCache(budget)
    for session in sessions:
        cache.hold(session, 0)
    return cache


def use(cache: FormCache, form: Form, images: int) -> bool:
    """Count the images one by one, and make the form as soon as it has earned it; return whether it was made."""
    made = False
    for _ in range(images):
        if cache.note(form, 1):
            made = cache.warm(form) or made
    return made


def breaking(session: FakeSession, error: BaseException | None) -> list[Form]:
    """Let the session fail to warm, or find everything useless; return the list of what is tried."""
    tried: list[Form] = []

    def warm(shape: tuple[int, int], *, alone: bool = False, copy: int = 0) -> bool:
        tried.append(Form(session, shape, alone, copy))
        if error is not None:
            raise error
        return False

    session.warm = warm
    return tried


def test_a_second_copy_waits_for_the_first() -> None:
    """However often lanes met in a shape, the copy for the second lane is made only beside the first one's."""
    session = new_session()
    kept: list[int] = []

    def warm(shape: tuple[int, int], *, alone: bool = False, copy: int = 0) -> bool:
        assert (shape, alone) == (SMALL, False)
        kept.append(copy)
        return True

    session.warm = warm
    cache = cache_of(PLENTY, session)
    assert not use(cache, Form(session, SMALL, copy=1), 3 * EARNED_AFTER)
    assert use(cache, Form(session, SMALL), EARNED_AFTER)
    assert use(cache, Form(session, SMALL, copy=1), 1)
    assert kept == [0, 1]


def test_a_form_is_earned_once() -> None:
    """Rare shapes stay cold; the image that crosses the threshold says so, and no other does."""
    session = new_session()
    cache = cache_of(PLENTY, session)
    said = [cache.note(Form(session, OTHER), 3) for _ in range(EARNED_AFTER)]
    assert said.count(True) == 1
    assert said.index(True) == (EARNED_AFTER - 1) // 3
    assert cache.forms(session) == ()
    assert cache.warm(Form(session, OTHER))
    assert not any(cache.note(Form(session, OTHER), 100) for _ in range(3))
    assert cache.forms(session) == (Form(session, OTHER),)


def test_lanes_and_alone_earn_for_themselves() -> None:
    """One shape has a form for the lanes and one for a lone call, each with its own cost."""
    session = new_session(lanes=3)
    cache = cache_of(PLENTY, session)
    assert not use(cache, Form(session, SMALL), EARNED_AFTER - 1)
    assert use(cache, Form(session, SMALL, alone=True), EARNED_AFTER)
    assert (session.warmed, session.warmed_alone) == (set(), {SMALL})
    assert cache.used() == 3 * 32 * 32
    assert use(cache, Form(session, SMALL), 1)
    assert cache.used() == (1 + 3) * 3 * 32 * 32


def test_a_known_shape_that_comes_alone_needs_no_second_proof() -> None:
    """With forms for lanes, a second lone image of the shape is enough; without, it takes more."""
    session = new_session()
    cache = cache_of(PLENTY, session)
    assert use(cache, Form(session, SMALL), EARNED_AFTER)
    assert [cache.note(Form(session, shape, alone=True), 1) for shape in (SMALL, OTHER) for _ in range(2)] == [
        False,
        True,
        False,
        False,
    ]


def test_one_form_is_made_at_a_time() -> None:
    """While a form is being made, or was promised and given up, others wait for their next image."""
    session = new_session()
    cache = cache_of(PLENTY, session)
    first, second = Form(session, SMALL), Form(session, OTHER)
    assert cache.note(first, EARNED_AFTER)
    assert not cache.note(second, EARNED_AFTER)
    cache.give_up(second)
    assert not cache.note(second, 1)
    cache.give_up(first)
    assert cache.note(second, 1)
    cache.warm(second)
    assert cache.note(first, 1)


@pytest.mark.parametrize("error", [BackendError("no memory"), MemoryError(), None])
def test_another_form_can_be_made_after_any_outcome(error: BaseException | None) -> None:
    """A form that fails, is useless or is not made at all leaves the way free and takes no memory."""
    broken, whole = new_session(), new_session()
    cache = cache_of(PLENTY, broken, whole)
    breaking(broken, error)
    assert cache.note(Form(broken, SMALL), EARNED_AFTER)
    if error is None:
        assert not cache.warm(Form(broken, SMALL))
    else:
        with pytest.raises(type(error)):
            cache.warm(Form(broken, SMALL))
    assert (cache.used(), cache.forms(broken)) == (0, ())
    assert use(cache, Form(whole, SMALL), EARNED_AFTER)


def test_the_way_is_free_after_a_cost_that_cannot_be_told() -> None:
    """Even an estimate that fails does not keep others from being made."""
    session = new_session()
    cache = cache_of(PLENTY, session)
    assert cache.note(Form(session, SMALL), EARNED_AFTER)
    estimate, session.shape_cost = session.shape_cost, lambda *_, **__: 1 // 0
    with pytest.raises(ZeroDivisionError):
        cache.warm(Form(session, SMALL))
    session.shape_cost = estimate
    assert use(cache, Form(session, OTHER), EARNED_AFTER)


def test_a_useless_form_is_not_tried_again() -> None:
    """What brings nothing is not made twice, however much it is used."""
    session = new_session()
    cache, tried = cache_of(PLENTY, session), breaking(session, None)
    assert not use(cache, Form(session, SMALL), 3 * FADE_EVERY)
    assert not cache.warm(Form(session, SMALL))
    assert len(tried) == 1


def test_a_failed_form_is_tried_again_but_seldom() -> None:
    """Memory may come back: a failed form gets another chance whenever counts fade, and none in between."""
    session = new_session()
    cache, tried = cache_of(PLENTY, session), breaking(session, BackendError("no memory"))
    form = Form(session, SMALL)
    for _ in range(3 * FADE_EVERY):
        if cache.note(form, 1):
            with pytest.raises(BackendError):
                cache.warm(form)
    assert len(tried) == 4
    del session.warm
    assert use(cache, form, FADE_EVERY)


def test_it_displaces_only_what_is_used_half_as_much() -> None:
    """Two shapes of about equal use do not push each other out in turns."""
    session = new_session()
    old, new = Form(session, SMALL), Form(session, (16, 64))
    cache = cache_of(old.cost, session)
    assert use(cache, old, 100)
    assert not use(cache, new, CLEARLY_MORE * 100 + 1)
    assert cache.forms(session) == (old,)
    assert use(cache, new, 1)
    assert cache.forms(session) == (new,)
    assert session.warmed == {new.shape}


def test_the_least_used_goes_first_and_no_more_than_needed() -> None:
    """Of several forms those go that are used least, as many as make room."""
    session = new_session()
    forms = [Form(session, shape) for shape in (SMALL, (16, 64), (64, 16), (128, 8))]
    cache = cache_of(3 * forms[0].cost, session)
    for form, images in zip(forms, (300, 100, 200, 400), strict=True):
        use(cache, form, images)
    assert cache.forms(session) == (forms[3], forms[0], forms[2])


def test_counts_fade() -> None:
    """What was used much once gives way to what is used now."""
    session = new_session()
    old, new = Form(session, SMALL), Form(session, (16, 64))
    cache = cache_of(old.cost, session)
    assert use(cache, old, FADE_EVERY - 1)
    assert use(cache, new, 2 * FADE_EVERY)
    assert cache.forms(session) == (new,)


def test_a_form_over_the_whole_budget_is_never_made() -> None:
    """It would push everything out and still not fit."""
    session = new_session()
    cache = cache_of(Form(session, SMALL).cost, session)
    use(cache, Form(session, SMALL), EARNED_AFTER)
    assert not use(cache, Form(session, (640, 640)), 1000)
    assert cache.forms(session) == (Form(session, SMALL),)


def test_room_is_made_only_where_there_is_none() -> None:
    """A release that fits costs no form; one that does not takes the least used, one that cannot all."""
    session = new_session()
    forms = [Form(session, shape) for shape in (SMALL, (16, 64), (64, 16))]
    cost = forms[0].cost
    cache = cache_of(4 * cost, session)
    for form, images in zip(forms, (100, 150, 200), strict=True):
        use(cache, form, images)
    for size, left in ((cost, 3), (cost + 1, 2), (3 * cost, 1), (9 * cost, 0)):
        cache.make_room(size)
        assert cache.forms(session) == tuple(forms[::-1][:left])
        assert session.warmed == {form.shape for form in forms[::-1][:left]}


def test_inherited_forms_come_most_used_first_and_count_as_much() -> None:
    """A successor's forms keep their order and are not displaced by what its ancestor's would not be."""
    ancestor, heir = new_session(), new_session()
    cache = cache_of(PLENTY, ancestor, heir)
    for shape, alone, images in ((SMALL, False, 100), (OTHER, True, 300), (THIRD, False, 200)):
        use(cache, Form(ancestor, shape, alone), images)
    inherited = cache.inherit(heir, ancestor)
    assert inherited == (Form(heir, OTHER, alone=True), Form(heir, THIRD), Form(heir, SMALL))
    assert cache.inherit(new_session(), heir) == ()
    for form in reversed(inherited):
        assert cache.warm(form)
    assert cache.forms(heir) == inherited


def test_an_heir_does_not_displace_what_serves() -> None:
    """Preparing a release in a full budget leaves the serving one its forms."""
    ancestor, heir = new_session(), new_session()
    form = Form(ancestor, SMALL)
    cache = cache_of(form.cost, ancestor, heir)
    use(cache, form, 100)
    (inherited,) = cache.inherit(heir, ancestor)
    assert not cache.warm(inherited)
    assert cache.forms(ancestor) == (form,)


def test_what_served_before_gives_way() -> None:
    """After a flip the new release's forms displace the old one's that were used just as much."""
    before, now = new_session(), new_session()
    form = Form(before, SMALL)
    cache = cache_of(form.cost, before, now)
    use(cache, form, 100)
    (heir,) = cache.inherit(now, before)
    cache.demote(before)
    assert cache.forms(before) == (form,)
    assert cache.note(heir, 1)
    assert cache.warm(heir)
    assert (cache.forms(before), cache.forms(now)) == ((), (heir,))


def test_what_is_dropped_is_forgotten() -> None:
    """A closed session's forms, counts and failures are gone, and late images do not bring them back."""
    session, other = new_session(), new_session()
    cache = FormCache(PLENTY)
    cache.hold(session, 5)
    cache.hold(other, 7)
    use(cache, Form(session, SMALL), EARNED_AFTER)
    assert cache.used() == 5 + 7 + Form(session, SMALL).cost
    cache.drop(session)
    assert (cache.used(), cache.forms(session)) == (7, ())
    assert not cache.note(Form(session, OTHER), 10 * EARNED_AFTER)
    assert not any(form.session is session for form in cache._seen)


shapes = st.tuples(st.sampled_from([32, 64, 96]), st.sampled_from([32, 64]))


@given(budget=st.integers(0, 60_000), uses=st.lists(st.tuples(shapes, st.booleans(), st.integers(1, 160)), max_size=30))
def test_a_form_displaces_only_by_law(budget: int, uses: list[tuple[tuple[int, int], bool, int]]) -> None:
    """Whatever is evicted was used less than half as much as what came, and what came had earned it."""
    session = new_session(lanes=2)
    cache = cache_of(budget, session)
    seen: dict[Form, int] = {}
    for shape, alone, images in uses:
        form = Form(session, shape, alone)
        seen[form] = seen.get(form, 0) + images
        before = set(cache.forms(session))
        if cache.note(form, images):
            known = Form(session, shape) in before
            least = ALONE_KNOWN_AFTER if known else ALONE_EARNED_AFTER
            assert seen[form] >= (least if alone else EARNED_AFTER)
            assert cache.warm(form)
        after = set(cache.forms(session))
        assert all(CLEARLY_MORE * seen[gone] < seen[form] for gone in before - after)
        assert after - before <= {form}


class Life(RuleBasedStateMachine):
    """Sessions come and go, images arrive, forms fail: the budget holds and cache and sessions agree."""

    @initialize(budget=st.integers(20_000, 120_000))
    def begin(self, budget: int) -> None:
        """Start empty."""
        self.cache = FormCache(budget)
        self.held: dict[FakeSession, int] = {}

    @rule(size=st.integers(0, 30_000), lanes=st.integers(1, 3))
    def load(self, size: int, lanes: int) -> None:
        """Load a release if it fits, as a preparation does, with the forms of another."""
        if len(self.held) == 3 or size + sum(self.held.values()) > self.cache.budget:
            return
        self.cache.make_room(size)
        session = new_session(lanes)
        self.cache.hold(session, size)
        for ancestor in list(self.held)[-1:]:
            for form in self.cache.inherit(session, ancestor):
                self.cache.warm(form)
        self.held[session] = size

    @rule(which=st.integers(0, 2), shape=shapes, alone=st.booleans(), images=st.integers(1, 500))
    def send(self, which: int, shape: tuple[int, int], images: int, *, alone: bool) -> None:
        """Send images of a shape."""
        if which < len(self.held):
            form = Form(list(self.held)[which], shape, alone)
            if self.cache.note(form, images):
                self.cache.warm(form)

    @rule(which=st.integers(0, 2))
    def fail(self, which: int) -> None:
        """Let a warming fail for once."""
        if which < len(self.held):
            session = list(self.held)[which]
            breaking(session, BackendError("no"))
            form = Form(session, (128, 128))
            if self.cache.note(form, EARNED_AFTER):
                with pytest.raises(BackendError):
                    self.cache.warm(form)
            del session.warm

    @rule(which=st.integers(0, 2))
    def close(self, which: int) -> None:
        """Free a release."""
        if which < len(self.held):
            session = list(self.held)[which]
            del self.held[session]
            self.cache.drop(session)

    @invariant()
    def kept(self) -> None:
        """Demand the budget, and that what the cache names is what the sessions have."""
        if not hasattr(self, "cache"):
            return
        forms = [form for session in self.held for form in self.cache.forms(session)]
        assert self.cache.used() == sum(self.held.values()) + sum(form.cost for form in forms) <= self.cache.budget
        for session in self.held:
            assert session.warmed == {form.shape for form in self.cache.forms(session) if not form.alone}
            assert session.warmed_alone == {form.shape for form in self.cache.forms(session) if form.alone}


TestLife = Life.TestCase
