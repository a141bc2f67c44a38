"""Drawing tools for product sprites: masks, ink, relief.

A sprite is drawn flat (albedo and coverage) together with a height map. Light falls on it only when it lies in a
scene, so that every product of a tray is lit from the same side however it is turned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatMap = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]
Item = TypeVar("Item")

_SUBPIXEL_BITS = 4
_SUBPIXEL = 1 << _SUBPIXEL_BITS
_HALF_COVERED = 0.5


class Sheet:
    """One sprite on the drawing board.

    Attributes:
        albedo: float32 (h, w, 3), RGB, 0-255, defined everywhere (also where nothing covers).
        cover: float32 (h, w), opacity, 0-1.
        height: float32 (h, w), height above the tray in sprite pixels, >= 0.
        gloss: strength of the highlight, 0-1.
    """

    def __init__(self, width: int, height: int, colour: Colour, gloss: float) -> None:
        """Start an empty sheet.

        Args:
            width: width in sprite pixels.
            height: height in sprite pixels.
            colour: RGB, 0-255, the albedo under the soft edge, so that no dark fringe appears.
            gloss: strength of the highlight, 0-1.
        """
        self.albedo: FloatMap = np.full((height, width, 3), colour, dtype=np.float32)
        self.cover: FloatMap = np.zeros((height, width), dtype=np.float32)
        self.height: FloatMap = np.zeros((height, width), dtype=np.float32)
        self.gloss = gloss

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in sprite pixels."""
        return self.cover.shape[0], self.cover.shape[1]

    def polygon(self, points: Sequence[Point] | FloatMap) -> FloatMap:
        """Mask of a filled polygon.

        Args:
            points: (n, 2) corners, x and y in sprite pixels.

        Returns:
            float32 (h, w), 0-1, antialiased.
        """
        board = np.zeros(self.shape, dtype=np.uint8)
        corners = np.round(np.asarray(points, dtype=np.float64) * _SUBPIXEL).astype(np.int32)
        cv2.fillPoly(board, [corners], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        return board.astype(np.float32) / np.float32(255)

    def ellipse(self, centre: Point, axes: Point, turn: float = 0.0) -> FloatMap:
        """Mask of a filled ellipse.

        Args:
            centre: x, y in sprite pixels.
            axes: the two half axes in sprite pixels.
            turn: rotation in degrees.

        Returns:
            float32 (h, w), 0-1, antialiased.
        """
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        along, across = axes[0] * np.cos(angles), axes[1] * np.sin(angles)
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        x = centre[0] + along * cos - across * sin
        y = centre[1] + along * sin + across * cos
        return self.polygon(np.stack([x, y], axis=1).astype(np.float32))

    def panel(self, left: float, top: float, right: float, bottom: float, radius: float = 0.0) -> FloatMap:
        """Mask of a rectangle with rounded corners.

        Args:
            left: left edge in sprite pixels.
            top: top edge in sprite pixels.
            right: right edge in sprite pixels.
            bottom: bottom edge in sprite pixels.
            radius: corner radius in sprite pixels.

        Returns:
            float32 (h, w), 0-1, antialiased.
        """
        quarter = np.linspace(0, np.pi / 2, 7)
        points: list[Point] = []
        east, west, north, south = right - radius, left + radius, top + radius, bottom - radius
        centres = ((east, south), (west, south), (west, north), (east, north))
        for corner, (x, y) in enumerate(centres):
            angles = quarter + corner * np.pi / 2
            points += [(x + radius * float(np.cos(angle)), y + radius * float(np.sin(angle))) for angle in angles]
        return self.polygon(points)

    def line(self, points: Sequence[Point] | FloatMap, width: int) -> FloatMap:
        """Mask of an open polyline.

        Args:
            points: (n, 2) points, x and y in sprite pixels.
            width: stroke width in sprite pixels, >= 1.

        Returns:
            float32 (h, w), 0-1, antialiased.
        """
        board = np.zeros(self.shape, dtype=np.uint8)
        path = np.round(np.asarray(points, dtype=np.float64) * _SUBPIXEL).astype(np.int32)
        cv2.polylines(
            board, [path], isClosed=False, color=255, thickness=width, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS
        )
        return board.astype(np.float32) / np.float32(255)

    def text(self, word: str, centre: Point, width: float, weight: int = 4) -> FloatMap:
        """Mask of a word, scaled to a width.

        Args:
            word: ASCII text.
            centre: middle of the word, x and y in sprite pixels.
            width: width of the word in sprite pixels.
            weight: stroke width in sprite pixels, >= 1.

        Returns:
            float32 (h, w), 0-1, antialiased.
        """
        font = cv2.FONT_HERSHEY_DUPLEX
        (natural, _), _ = cv2.getTextSize(word, font, 1.0, weight)
        scale = width / max(natural, 1)
        (wide, tall), _ = cv2.getTextSize(word, font, scale, weight)
        board = np.zeros(self.shape, dtype=np.uint8)
        origin = (round(centre[0] - wide / 2), round(centre[1] + tall / 2))
        cv2.putText(board, word, origin, font, scale, 255, weight, cv2.LINE_AA)
        return board.astype(np.float32) / np.float32(255)

    def body(self, mask: FloatMap, colour: Colour, opacity: float = 1.0) -> None:
        """Add material: colour it and let it cover what lies below.

        Args:
            mask: float32 (h, w), 0-1.
            colour: RGB, 0-255.
            opacity: 0-1, below 1 for glass.
        """
        self.ink(mask, colour)
        self.cover = np.maximum(self.cover, mask * np.float32(opacity))

    def ink(self, mask: FloatMap, colour: Colour, strength: float = 1.0) -> None:
        """Print on material that is there.

        Args:
            mask: float32 (h, w), 0-1.
            colour: RGB, 0-255.
            strength: 0-1.
        """
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            return
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        blend = (mask[window] * np.float32(strength))[..., None]
        self.albedo[window] += (np.asarray(colour, dtype=np.float32) - self.albedo[window]) * blend

    def tint(self, factor: FloatMap) -> None:
        """Multiply the albedo.

        Args:
            factor: float32 (h, w), >= 0, 1 leaves a pixel as it is.
        """
        self.albedo = np.clip(self.albedo * factor[..., None], 0, 255).astype(np.float32)

    def raise_by(self, relief: FloatMap) -> None:
        """Add to the height map.

        Args:
            relief: float32 (h, w), sprite pixels, negative for dents.
        """
        self.height = np.maximum(self.height + relief, 0).astype(np.float32)

    def grid(self) -> tuple[FloatMap, FloatMap]:
        """Pixel coordinates.

        Returns:
            x and y, each float32 (h, w), in sprite pixels.
        """
        y, x = np.mgrid[0 : self.shape[0], 0 : self.shape[1]]
        return x.astype(np.float32), y.astype(np.float32)


def pillow(mask: FloatMap, radius: float) -> FloatMap:
    """Height of a soft body with a given outline.

    Args:
        mask: float32 (h, w), 0-1.
        radius: distance from the edge, in sprite pixels, at which the body is at its highest.

    Returns:
        float32 (h, w), 0-radius, round at the edge and flat inside.
    """
    inside = cv2.distanceTransform((mask > _HALF_COVERED).astype(np.uint8), cv2.DIST_L2, 5)
    rim = np.clip(1 - inside / radius, 0, 1)
    round_edge: FloatMap = (radius * np.sqrt(1 - rim**2)).astype(np.float32)
    soft: FloatMap = cv2.GaussianBlur(round_edge, (0, 0), 1.5)
    return soft


def cloud(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> FloatMap:
    """Smooth noise.

    Args:
        rng: source of randomness.
        shape: height and width in pixels.
        cell: size of one bump in pixels.

    Returns:
        float32 (h, w), about -1 to 1.
    """
    rows, columns = max(2, round(shape[0] / cell) + 1), max(2, round(shape[1] / cell) + 1)
    seeds = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    smooth: FloatMap = cv2.resize(seeds, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return smooth


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Choose one item, each equally likely.

    Args:
        rng: source of randomness.
        items: at least one.

    Returns:
        One of the items.
    """
    return items[int(rng.integers(len(items)))]


def chance(rng: np.random.Generator, share: float) -> bool:
    """Throw a loaded coin.

    Args:
        rng: source of randomness.
        share: how often it comes up true, 0-1.

    Returns:
        Whether it did.
    """
    return float(rng.random()) < share


def vary(rng: np.random.Generator, colour: Colour, spread: float = 12.0) -> Colour:
    """Shift a colour a little.

    Args:
        rng: source of randomness.
        colour: RGB, 0-255.
        spread: largest shift of a channel, 0-255.

    Returns:
        RGB, 0-255.
    """
    red, green, blue = np.clip(np.asarray(colour) + rng.uniform(-spread, spread, 3), 0, 255)
    return float(red), float(green), float(blue)
