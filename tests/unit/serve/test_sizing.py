"""Cores shared out among replicas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SettingsError
from serve.settings import Settings
from serve.sizing import check_cores, size_replica


@given(st.integers(1, 128), st.integers(1, 64))
def test_all_replicas_fit_on_the_machine(cores: int, replicas: int) -> None:
    """No replica waits for cores that the others have, and each has a thread."""
    sizing = size_replica(Settings(replicas=replicas), cores)
    # Ray counts in ten-thousandths of a core.
    assert 0 < round(sizing.cpus * 10_000) * replicas <= cores * 10_000
    assert 1 <= sizing.threads <= max(1, cores // replicas)


def test_two_replicas_on_two_cores_take_one_each() -> None:
    """The usual small machine."""
    sizing = size_replica(Settings(replicas=2), 2)
    assert (sizing.cpus, sizing.threads) == (1.0, 1)


def test_autoscaling_shares_out_for_the_most_replicas() -> None:
    """The last replica to come up finds its place too."""
    assert size_replica(Settings(min_replicas=1, max_replicas=4), 2).cpus == 0.5


def test_given_cores_are_taken_as_they_are() -> None:
    """On a cluster the head's cores say nothing about a worker's."""
    sizing = size_replica(Settings(cpus=3.5, replicas=10), 1)
    assert (sizing.cpus, sizing.threads) == (3.5, 3)


def test_replicas_that_cannot_all_start_are_refused() -> None:
    """One line before anything heavy, instead of a replica that waits for ever."""
    check_cores(Settings(cpus=1, replicas=2), 2)
    with pytest.raises(SettingsError, match=r"2 replicas of 1\.5 CPU cores do not fit on this machine's 2: lower"):
        check_cores(Settings(cpus=1.5, replicas=2), 2)
