"""What lies around the products: counters, trays, and things that are not for sale."""

from __future__ import annotations

import cv2
import numpy as np

from models.demo.brush import Colour, FloatMap, Sheet, chance, cloud, pick, vary

_COUNTERS: tuple[Colour, ...] = (
    (52, 54, 58),
    (150, 152, 156),
    (160, 120, 82),
    (205, 200, 192),
    (90, 98, 106),
    (70, 84, 78),
)
_FLOORS: tuple[Colour, ...] = (
    (196, 199, 203),
    (226, 226, 222),
    (112, 132, 152),
    (84, 88, 94),
    (190, 178, 160),
    (132, 158, 142),
    (176, 140, 100),
)


def _texture(rng: np.random.Generator, shape: tuple[int, int], colour: Colour) -> FloatMap:
    """A surface of one colour (RGB 0-255) with grain: float32 (h, w, 3), 0-255."""
    height, width = shape
    kind = pick(rng, ("brushed", "grained", "speckled", "smooth"))
    unit = min(shape) / 320
    if kind == "brushed":
        grain = cloud(rng, (height, 1 + width // 24), unit * 2)
        grain = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) * 0.05
    elif kind == "grained":
        bend = cloud(rng, shape, unit * 120) * 8
        bend += np.linspace(0, rng.uniform(20, 60), height, dtype=np.float32)[:, None]
        grain = 0.04 * np.sin(bend).astype(np.float32) + 0.03 * cloud(rng, shape, unit * 3)
    elif kind == "speckled":
        grain = 0.05 * cloud(rng, shape, unit * 2) + 0.04 * cloud(rng, shape, unit * 30)
    else:
        grain = 0.03 * cloud(rng, shape, unit * 60)
    painted = np.asarray(colour, dtype=np.float32) * (1 + grain[..., None])
    return np.clip(painted, 0, 255).astype(np.float32)


def counter_with_tray(rng: np.random.Generator, shape: tuple[int, int]) -> FloatMap:
    """Paint the empty scene: a counter and, mostly, a tray with a rim on it.

    Args:
        rng: source of randomness.
        shape: height and width in pixels.

    Returns:
        float32 (h, w, 3), RGB, 0-255.
    """
    scene = _texture(rng, shape, vary(rng, pick(rng, _COUNTERS)))
    if chance(rng, 0.12):
        return scene
    height, width = shape
    short = min(shape)
    board = Sheet(width, height, (0, 0, 0), gloss=0)
    margin_x, margin_y = width * float(rng.uniform(0.02, 0.07)), height * float(rng.uniform(0.02, 0.07))
    corner, rim = short * float(rng.uniform(0.03, 0.1)), short * float(rng.uniform(0.02, 0.035))
    floor = vary(rng, pick(rng, _FLOORS))

    def inset(by: float) -> FloatMap:
        """Mask of the tray's outline moved inwards by `by` pixels."""
        radius = max(corner - by * 0.5, 1.0)
        return board.panel(margin_x + by, margin_y + by, width - margin_x - by, height - margin_y - by, radius)

    def lay(mask: FloatMap, colour: FloatMap) -> None:
        """Blend `colour`, float32 (h, w, 3) or (3,), into the scene where `mask` is 1."""
        scene[:] += (colour - scene) * mask[..., None]

    outline = inset(0)
    soft = cv2.GaussianBlur(outline, (0, 0), short * 0.02).astype(np.float32)
    scene *= (1 - 0.45 * soft * (1 - outline))[..., None]
    lip = np.asarray(floor, dtype=np.float32)
    lay(outline, lip * np.float32(0.8))
    lay(inset(rim * 0.25), np.minimum(lip * np.float32(1.16), 250))
    lay(inset(rim * 0.75), lip * np.float32(0.74))
    inner = inset(rim)
    lay(inner, _texture(rng, shape, floor))
    walls = cv2.GaussianBlur(1 - inner, (0, 0), short * 0.018).astype(np.float32)
    scene *= (1 - 0.4 * walls * inner)[..., None]
    return scene


def receipt(rng: np.random.Generator) -> Sheet:
    """Draw a till receipt, which is not for sale and carries no label."""
    sheet = Sheet(100, 200, (240, 240, 236), gloss=0)
    sheet.body(sheet.panel(6, 4, 94, int(rng.integers(120, 196))), (243, 243, 239))
    for y in np.arange(16, 196, 11):
        stop = float(rng.uniform(40, 66))
        sheet.ink(sheet.panel(14, float(y), stop, float(y) + 3), (120, 120, 124), 0.8)
        sheet.ink(sheet.panel(74, float(y), 88, float(y) + 3), (120, 120, 124), 0.8)
    sheet.raise_by(sheet.cover + np.float32(2) * cloud(rng, sheet.shape, 60))
    return sheet


def coin(rng: np.random.Generator) -> Sheet:
    """Draw a coin, which is not for sale and carries no label."""
    metal = pick(rng, ((205, 170, 85), (185, 187, 190), (170, 110, 70)))
    sheet = Sheet(64, 64, metal, gloss=0.5)
    sheet.body(sheet.ellipse((32, 32), (28, 28)), vary(rng, metal))
    sheet.raise_by(5 * sheet.cover - 2 * sheet.ellipse((32, 32), (22, 22)))
    sheet.ink(sheet.text(pick(rng, ("1", "2", "5")), (32, 32), 14, 3), (95, 80, 50), 0.7)
    return sheet
