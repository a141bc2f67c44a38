"""Slots: the flip is one step, leases pin, and every retired release is freed exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.backends.fake import FakeBackend, FakeSession
from models.engine.slots import Lease, Slots
from models.errors import ReleaseFaultError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Release


@pytest.fixture
def freed() -> list[str]:
    """Return the first letters of the digests freed, in order."""
    return []


@pytest.fixture
def slots(freed: list[str]) -> Slots:
    """Return empty slots that write down what they free."""
    return Slots(lambda release, _session: freed.append(release.digest[0]))


@pytest.fixture
def load(make_release: Callable[..., Release]) -> Callable[..., tuple[Release, FakeSession]]:
    """Return a loader of fake releases."""
    return lambda letter, version="1": (
        release := make_release(letter, version),
        FakeBackend().load(release),
    )


def test_flip_moves_all_three_slots(slots: Slots, load: Callable, freed: list[str]) -> None:
    """The candidate serves, the old one is previous, the one before is freed."""
    for generation, letter in enumerate("abc", start=1):
        slots.offer(*load(letter))
        assert slots.flip(letter * 64, generation).digest == letter * 64
    assert (slots.active.release.digest[0], slots.previous.release.digest[0], slots.candidate) == ("c", "b", None)
    assert slots.generation == 3
    assert freed == ["a"]


def test_rollback_is_a_flip_to_previous(slots: Slots, load: Callable, freed: list[str]) -> None:
    """Active and previous change places; nothing is freed."""
    for letter in "ab":
        slots.offer(*load(letter))
        slots.flip(letter * 64, 1)
    slots.flip("a" * 64, 2)
    assert (slots.active.release.digest[0], slots.previous.release.digest[0]) == ("a", "b")
    assert freed == []


def test_flip_to_active_only_moves_the_generation(slots: Slots, load: Callable) -> None:
    """A repeated commit is harmless."""
    slots.offer(*load("a"))
    slots.flip("a" * 64, 1)
    slots.flip("a" * 64, 5)
    assert (slots.generation, slots.previous) == (5, None)


def test_flip_to_a_stranger_changes_nothing(slots: Slots, load: Callable) -> None:
    """What is not loaded cannot serve."""
    slots.offer(*load("a"))
    slots.flip("a" * 64, 1)
    with pytest.raises(ReleaseFaultError, match="prepare it first") as caught:
        slots.flip("f" * 64, 2)
    assert (caught.value.step, slots.generation, slots.active.release.digest[0]) == ("commit", 1, "a")


def test_a_lease_keeps_its_release_and_generation(slots: Slots, load: Callable, freed: list[str]) -> None:
    """A flip during a batch changes neither what the batch uses nor what it says; freeing waits for its end."""
    slots.offer(*load("a"))
    slots.flip("a" * 64, 1)
    lease = slots.lease()
    for letter in "bc":
        slots.offer(*load(letter))
        slots.flip(letter * 64, 2)
    assert (lease.release.digest[0], lease.generation, freed) == ("a", 1, [])
    lease.end()
    lease.end()
    assert freed == ["a"]


def test_the_same_content_under_a_new_version(slots: Slots, load: Callable, make_release: Callable) -> None:
    """A renamed release keeps its old name until its flip, and running leases keep it even then."""
    slots.offer(*load("a", "1"))
    slots.flip("a" * 64, 1)
    slots.active.renamed = make_release("a", "3")
    lease = slots.lease()
    assert slots.active.release.version == "1"
    slots.flip("a" * 64, 2)
    assert (slots.active.release.version, lease.release.version, slots.lease().release.version) == ("3", "1", "3")
    lease.end()


def test_discard_drops_only_candidates(slots: Slots, load: Callable, freed: list[str]) -> None:
    """A rejected candidate goes; what serves stays, though it forgets a name it was to take."""
    slots.offer(*load("a"))
    slots.flip("a" * 64, 1)
    slots.active.renamed = slots.active.release
    slots.offer(*load("b"))
    slots.discard("a" * 64)
    slots.discard("b" * 64)
    assert (slots.active.renamed, slots.candidate, freed) == (None, None, ["b"])


def test_any_resident_release_can_be_leased(slots: Slots, load: Callable, make_release: Callable) -> None:
    """A candidate answers under the generation of its attempt and the name it will bear; the lease pins it."""
    slots.offer(*load("a"))
    slots.flip("a" * 64, 1)
    slots.offer(*load("b"))
    slots.candidate.renamed = make_release("b", "5")
    lease = slots.lease_resident("b" * 64, 7)
    assert (lease.release.version, lease.generation, slots.generation) == ("5", 7, 1)
    assert slots.candidate.leases == 1
    assert slots.lease_resident("c" * 64, 7) is None


def test_a_lane_is_reserved_for_all_leases(slots: Slots, load: Callable) -> None:
    """Whoever leases the release later sees that the lane is taken; other releases keep all theirs."""
    for letter in "ab":
        slots.offer(*load(letter))
        slots.flip(letter * 64, 1)
    shadow = slots.lease_resident("a" * 64, 2)
    shadow.reserve(1)
    assert slots.lease().reserved is None
    slots.flip("a" * 64, 2)
    assert slots.lease().reserved == 1
    shadow.reserve(None)
    assert slots.lease().reserved is None


def test_nothing_active_means_no_lease(slots: Slots) -> None:
    """An empty engine hands out nothing."""
    assert slots.lease() is None


@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.sampled_from("abcdef")),
            st.tuples(st.just("flip"), st.sampled_from("abcdef")),
            st.tuples(st.just("discard"), st.sampled_from("abcdef")),
            st.tuples(st.just("lease")),
            st.tuples(st.just("lease resident"), st.sampled_from("abcdef")),
            st.tuples(st.just("end"), st.integers(0, 20)),
        ),
        max_size=60,
    )
)
def test_every_session_is_freed_once_and_never_under_a_lease(make_release: Callable, script: list) -> None:
    """Whatever the order, a session in a slot or under a lease is open and every other one is freed exactly once."""
    backend = FakeBackend()
    freed: list[object] = []
    leases: list[Lease] = []
    slots = Slots(lambda _release, session: freed.append(session))
    for action in script:
        match action:
            case ("offer", letter) if slots.find(letter * 64) is None:
                release = make_release(letter)
                slots.offer(release, backend.load(release))
            case ("flip", letter) if slots.find(letter * 64) is not None:
                slots.flip(letter * 64, slots.generation + 1)
            case ("discard", letter):
                slots.discard(letter * 64)
            case ("lease",) if (lease := slots.lease()) is not None:
                leases.append(lease)
            case ("lease resident", letter) if (lease := slots.lease_resident(letter * 64, 9)) is not None:
                leases.append(lease)
            case ("end", index) if leases:
                leases.pop(index % len(leases)).end()
        in_slots = [slot.session for slot in (slots.active, slots.previous, slots.candidate) if slot is not None]
        needed = {id(session) for session in in_slots + [lease.session for lease in leases]}
        assert len(freed) == len({id(session) for session in freed})
        assert needed.isdisjoint(id(session) for session in freed)
        assert len(needed) + len(freed) == len(backend.sessions)
    slots.clear()
    for lease in leases:
        lease.end()
    assert len(freed) == len(backend.sessions)
