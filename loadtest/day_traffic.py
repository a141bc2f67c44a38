"""A day of checkout traffic, second by second: opening, lunch, evening peak, noise, and one crowd out of nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAY_S: Final = 86_400
OPEN_H: Final = 7.0
CLOSE_H: Final = 22.0
NIGHT: Final = 0.02
"""Load while the shops are closed, of the day's peak."""
PEAKS: Final = ((9.0, 1.0, 0.30), (12.4, 0.8, 0.55), (17.8, 1.3, 0.75))
"""(hour, width in hours, height) of morning, lunch and evening, on top of what goes on all day."""
ALL_DAY: Final = 0.25
DOORS_H: Final = 0.1
"""Width of opening and closing: most of the step within a quarter of an hour."""
NOISE: Final = 0.03
"""Standard deviation of the load around its curve, which forgets itself within NOISE_S."""
NOISE_S: Final = 60.0
CROWD: Final = (14.5, 1.6, 10.0, 900.0)
"""Hour, factor, seconds of its rise and seconds that it stays."""


def curve(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the smooth load at ``seconds`` (n,) of the day, the largest of the day being 1."""

    def shape(hours: NDArray[np.float64]) -> NDArray[np.float64]:
        is_open = 1 / (1 + np.exp(-(hours - OPEN_H) / DOORS_H)) / (1 + np.exp((hours - CLOSE_H) / DOORS_H))
        busy = ALL_DAY + sum(height * np.exp(-(((hours - at) / width) ** 2) / 2) for at, width, height in PEAKS)
        return np.asarray(is_open * busy)

    top = shape(np.arange(0.0, 24.0, 1 / 60)).max()
    return np.asarray(NIGHT + (1 - NIGHT) * shape(seconds / 3600.0) / top)


def arrivals(peak: float, *, seed: int, seconds: int = DAY_S) -> NDArray[np.float64]:
    """Return the images that arrive in each of ``seconds`` seconds from midnight, shape (seconds,), whole numbers.

    peak: images a second at the top of the curve, > 0. Equal seeds give equal days.
    """
    random = np.random.default_rng(seed)
    at = np.arange(seconds, dtype=np.float64)
    keeps = np.exp(-1.0 / NOISE_S)
    shocks = random.normal(0.0, NOISE * np.sqrt(1 - keeps**2), seconds)
    noise = np.empty(seconds)
    level = 0.0
    for second in range(seconds):
        level = keeps * level + shocks[second]
        noise[second] = level
    hour, factor, rise_s, stays_s = CROWD
    since = at - 3600.0 * hour
    crowd = 1 + (factor - 1) * np.clip(np.minimum(since / rise_s, (stays_s + rise_s - since) / rise_s), 0.0, 1.0)
    rate = peak * curve(at) * np.maximum(1 + noise, 0.0) * crowd
    return random.poisson(rate).astype(np.float64)
