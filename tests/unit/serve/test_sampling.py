"""Which requests are traced: what callers decide, up to a rate, and a share of the others."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serve.sampling import CALLERS_A_SECOND, CALLERS_BURST, Allowance, Sampler

ASKS = f"00-{'a' * 32}-{'b' * 16}-01"
DECLINES = f"00-{'a' * 32}-{'b' * 16}-00"


def test_a_caller_decides() -> None:
    """What the caller traces is traced although the share is 0; what it does not trace is not, although it is 1."""
    assert Sampler(0.0, 0.0).wants(ASKS, 0.0)
    assert Sampler(0.0, 0.0).wants(ASKS[:-2] + "03", 0.0)
    assert not Sampler(1.0, 0.0).wants(DECLINES, 0.0)


def test_without_a_caller_a_share_is_traced() -> None:
    """Those whose number lies below the share."""
    numbers = itertools.cycle([0.05, 0.15])
    sampler = Sampler(0.1, 0.0, numbers.__next__)
    assert [sampler.wants(None, 0.0) for _ in range(4)] == [True, False, True, False]
    assert not Sampler(0.0, 0.0, lambda: 0.0).wants(None, 0.0)
    assert Sampler(1.0, 0.0, lambda: 0.999).wants(None, 0.0)


def test_callers_cannot_have_everything_traced() -> None:
    """Beyond their rate, requests that ask for it count as those that say nothing, and time brings more."""
    sampler = Sampler(0.0, 0.0)
    assert sum(sampler.wants(ASKS, 0.0) for _ in range(1000)) == CALLERS_BURST
    assert sum(sampler.wants(ASKS, 1.0) for _ in range(1000)) == CALLERS_A_SECOND
    assert Sampler(1.0, 0.0).wants(ASKS, 0.0)
    share = Sampler(0.5, 0.0, lambda: 0.4)
    assert all(share.wants(ASKS, 0.0) for _ in range(100))


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=200), st.floats(0.1, 10.0), st.floats(1.0, 10.0))
def test_an_allowance_is_never_exceeded(moments: list[float], rate: float, burst: float) -> None:
    """In any time T from the start, at most rate x T + burst are granted, and the first one always is."""
    allowance, granted = Allowance(rate, burst, 0.0), 0
    for number, now in enumerate(sorted(moments)):
        granted += allowance.take(now)
        assert granted >= 1 or number > 0
        assert granted <= rate * now + burst + 1e-6
