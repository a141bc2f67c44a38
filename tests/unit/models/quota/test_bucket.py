"""Buckets whose spending is learned late, and fair division."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.quota.bucket import Bucket, burst_of, divide


def test_a_bucket_fills_at_its_rate_up_to_its_burst() -> None:
    """Empty at 10, five a second: 5 tokens at 11 and no more at 20."""
    bucket = Bucket.filling(5.0, 10.0, 10.0)
    assert bucket.at(10.4).level == pytest.approx(2.0)
    assert bucket.at(20.0).level == 5.0
    assert bucket.at(9.0) == bucket


def test_a_bucket_begins_to_fill_when_its_time_comes() -> None:
    """One that opens later is empty until then."""
    bucket = Bucket.filling(5.0, 12.0, 10.0)
    assert (bucket.at(11.9).level, bucket.at(12.2).level) == (0.0, pytest.approx(1.0))


def test_a_full_bucket_gets_back_what_ran_over_since_the_spending() -> None:
    """A token spent 0.1 s ago at five a second would be half replaced, one spent a second ago wholly."""
    full = Bucket.filling(5.0, 0.0, 10.0)
    assert full.spend(1, 9.9, 10.0).level == pytest.approx(4.5)
    assert full.spend(1, 9.0, 10.0).level == 5.0


def test_what_ran_over_comes_back_once() -> None:
    """Two replicas that tell of the same moment do not get it twice."""
    bucket = Bucket.filling(5.0, 0.0, 10.0).spend(1, 9.0, 10.0).spend(1, 9.0, 10.0)
    assert bucket.level == pytest.approx(4.0)


def test_another_rate_counts_from_its_moment() -> None:
    """A smaller burst takes what is too much at once; the same rate changes nothing."""
    bucket = Bucket.filling(20.0, 0.0, 10.0)
    slower = bucket.tuned(2.0, burst_of(2.0), 10.0)
    assert (slower.level, slower.spend(2, 10.0, 10.0).at(10.5).level) == (2.0, pytest.approx(1.0))
    assert bucket.tuned(20.0, 20.0, 11.0) is bucket


@pytest.mark.parametrize(
    ("amount", "wants", "shares"),
    [
        (10, [1, 20, 20], [1, 5, 4]),
        (1, [3, 3], [1, 0]),
        (0, [1], [0]),
        (-2, [1], [0]),
        (9, [2, 3], [2, 3]),
        (4, [], []),
    ],
)
def test_division_is_fair(amount: int, wants: list[int], shares: list[int]) -> None:
    """Small wants are met, the rest is shared alike, the first get the remainder."""
    assert divide(amount, wants) == shares


@given(st.integers(0, 200), st.lists(st.integers(0, 60), max_size=8))
def test_division_wastes_nothing_and_nobody_envies(amount: int, wants: list[int]) -> None:
    """All that is wanted is given out while it lasts; who is short has at least what anybody else has, but for one."""
    shares = divide(amount, wants)
    assert sum(shares) == min(amount, sum(wants))
    assert all(share <= want for share, want in zip(shares, wants, strict=True))
    short = [share for share, want in zip(shares, wants, strict=True) if share < want]
    assert all(share >= max(shares) - 1 for share in short)
