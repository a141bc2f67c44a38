"""Sprites of unpackaged food: apple, banana, orange, bread, cheese, eggs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.demo.brush import Colour, FloatMap, Sheet, chance, cloud, pick, pillow, vary

_APPLES: tuple[tuple[Colour, Colour], ...] = (
    ((190, 25, 35), (215, 120, 60)),
    ((205, 45, 40), (235, 190, 90)),
    ((140, 185, 50), (185, 210, 95)),
    ((165, 20, 45), (200, 70, 60)),
)
_PULP: tuple[Colour, ...] = ((165, 160, 150), (150, 170, 150), (185, 160, 150), (150, 165, 185), (190, 175, 140))
_EGGS: tuple[Colour, ...] = ((222, 170, 125), (240, 225, 205), (205, 150, 110))
_RINDS: tuple[Colour, ...] = ((190, 60, 40), (225, 150, 40), (150, 105, 50))


def _blob(rng: np.random.Generator, sheet: Sheet, radius: float, wobble: float) -> FloatMap:
    """Mask, float32 (h, w) 0-1, of a disc of about `radius` sprite pixels with an outline uneven by `wobble` (0-1)."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    lobes = wobble * np.cos(5 * angles + rng.uniform(0, 6)) + wobble * np.cos(2 * angles + rng.uniform(0, 6))
    reach = radius * (1 + lobes)
    middle_x, middle_y = sheet.shape[1] / 2, sheet.shape[0] / 2
    points = np.stack([middle_x + reach * np.cos(angles), middle_y + reach * np.sin(angles)], axis=1)
    return sheet.polygon(points.astype(np.float32))


def apple(rng: np.random.Generator) -> Sheet:
    """Draw an apple seen from above: streaks towards a dimple with a stem, sometimes a leaf."""
    skin, streak = pick(rng, _APPLES)
    sheet = Sheet(220, 220, skin, gloss=0.7)
    mask = _blob(rng, sheet, 101, 0.018)
    sheet.body(mask, vary(rng, skin))
    x, y = sheet.grid()
    stem_x, stem_y = (110 + float(rng.uniform(-26, 26)) for _ in range(2))
    reach = np.hypot(x - stem_x, y - stem_y)
    angle = np.arctan2(y - stem_y, x - stem_x)
    rays = sum(np.cos(n * angle + rng.uniform(0, 6)) for n in (7, 13, 19, 31)) / 4
    sheet.ink(np.clip(0.35 + rays - reach / 160, 0, 0.8).astype(np.float32), vary(rng, streak))
    sheet.ink(np.exp(-((reach / 16) ** 2)).astype(np.float32), (120, 110, 40), 0.8)
    sheet.raise_by(pillow(mask, 90))
    sheet.raise_by((-26 * np.exp(-((reach / 22) ** 2))).astype(np.float32))
    lean = float(rng.uniform(0, 2 * np.pi))
    tip = (stem_x + 30 * float(np.cos(lean)), stem_y + 30 * float(np.sin(lean)))
    sheet.ink(sheet.line([(stem_x, stem_y), tip], 7), (80, 55, 30))
    if chance(rng, 0.35):
        leaf = sheet.ellipse((tip[0] - 6, tip[1] + 12), (30, 12), float(rng.uniform(0, 180)))
        sheet.ink(leaf, vary(rng, (70, 135, 50)))
        sheet.raise_by(6 * leaf)
    return sheet


def orange(rng: np.random.Generator) -> Sheet:
    """Draw an orange: pored skin with a small green or brown navel."""
    skin = vary(rng, pick(rng, ((245, 140, 25), (250, 155, 45), (240, 120, 20))))
    sheet = Sheet(220, 220, skin, gloss=0.35)
    mask = _blob(rng, sheet, 102, 0.008)
    sheet.body(mask, skin)
    pores = cloud(rng, sheet.shape, 5)
    sheet.tint((1 + 0.07 * pores).astype(np.float32))
    sheet.raise_by(pillow(mask, 98))
    sheet.raise_by((1.1 * pores * mask).astype(np.float32))
    x, y = (110 + float(rng.uniform(-40, 40)) for _ in range(2))
    for turn in (0, 60, 120):
        sheet.ink(sheet.ellipse((x, y), (13, 4.5), turn), (105, 120, 45))
    sheet.ink(sheet.ellipse((x, y), (5, 5)), (70, 65, 35))
    return sheet


def banana(rng: np.random.Generator) -> Sheet:
    """Draw a banana: a ridged crescent with dark tips and some freckles."""
    skin = vary(rng, pick(rng, ((248, 215, 60), (250, 222, 85), (225, 215, 75))))
    sheet = Sheet(256, 150, skin, gloss=0.3)
    bend = float(rng.uniform(118, 150))
    sweep = np.arcsin(112 / bend)
    angles = np.linspace(-sweep, sweep, 40)
    t = np.linspace(-1, 1, 40)
    half_width = 25 * np.sqrt(np.clip(1 - np.abs(t) ** 3.2, 0, 1)) + 6.5
    middle_y = 32 - bend * np.cos(sweep)

    def along(offset: npt.NDArray[np.float64]) -> FloatMap:
        """Points (40, 2) at `offset` sprite pixels outside the centre line."""
        reach = bend + offset
        return np.stack([128 + reach * np.sin(angles), middle_y + reach * np.cos(angles)], axis=1).astype(np.float32)

    outer, inner = along(half_width), along(-half_width)
    mask = sheet.polygon(np.concatenate([outer, inner[::-1]]))
    sheet.body(mask, skin)
    sheet.raise_by(pillow(mask, 28))
    sheet.ink(sheet.line(along(0.3 * half_width), 3), (185, 140, 30), 0.6)
    sheet.ink(sheet.line(along(-0.45 * half_width), 2), (200, 160, 40), 0.5)
    x, _ = sheet.grid()
    ends = np.clip((np.abs(x - 128) - 74) / 44, 0, 1).astype(np.float32)
    sheet.ink(ends, (165, 175, 60), float(rng.uniform(0.2, 0.75)))
    for side in (-1, 1):
        sheet.ink(np.clip((side * (x - 128) - 103) / 6, 0, 1).astype(np.float32), (75, 55, 30))
    for _ in range(int(rng.integers(0, 16))):
        spot = (float(rng.uniform(40, 216)), float(rng.uniform(30, 130)))
        sheet.ink(sheet.ellipse(spot, (float(rng.uniform(2, 6)), 2), float(rng.uniform(0, 180))), (130, 90, 30), 0.7)
    return sheet


def bread(rng: np.random.Generator) -> Sheet:
    """Draw a loaf: brown crust with pale slashes and flour."""
    crust = vary(rng, pick(rng, ((190, 125, 60), (170, 105, 50), (205, 145, 80))))
    sheet = Sheet(150, 256, crust, gloss=0.08)
    mask = sheet.panel(14, 12, 136, 244, 58)
    wobble = cloud(rng, sheet.shape, 34)
    sheet.body(mask, crust)
    dome = pillow(mask, 58)
    sheet.raise_by(dome)
    sheet.raise_by((3 * wobble * mask).astype(np.float32))
    sheet.tint((0.78 + 0.32 * dome / 58 + 0.06 * cloud(rng, sheet.shape, 6)).astype(np.float32))
    slashes = int(rng.integers(3, 6))
    slant = float(rng.uniform(12, 30)) * (1 if chance(rng, 0.5) else -1)
    for place in np.linspace(58, 198, slashes):
        y = float(place)
        cut = [(34, y + slant), (75, y), (116, y - slant)]
        sheet.ink(sheet.line(cut, 17), (125, 70, 30), 0.7)
        slash = sheet.line(cut, 11)
        sheet.ink(slash, (238, 208, 155))
        sheet.raise_by(-7 * slash)
    flour = np.clip(cloud(rng, sheet.shape, 9) - 0.35, 0, 1).astype(np.float32)
    sheet.ink(flour, (248, 240, 225), float(rng.uniform(0, 0.8)))
    return sheet


def cheese(rng: np.random.Generator) -> Sheet:
    """Draw a wedge of cheese: holes and a coloured rind on the round side."""
    paste = vary(rng, pick(rng, ((250, 205, 85), (252, 220, 120), (245, 180, 60))))
    sheet = Sheet(220, 190, paste, gloss=0.2)
    opening = float(rng.uniform(21, 27))
    angles = np.deg2rad(np.linspace(-opening, opening, 24))
    arc = np.stack([8 + 200 * np.cos(angles), 95 + 200 * np.sin(angles)], axis=1)
    mask = sheet.polygon(np.concatenate([[[8.0, 95.0]], arc]).astype(np.float32))
    sheet.body(mask, paste)
    sheet.raise_by(pillow(mask, 9) * np.float32(2))
    sheet.tint((1 + 0.03 * cloud(rng, sheet.shape, 18)).astype(np.float32))
    for _ in range(int(rng.integers(6, 11))):
        reach, turn = float(rng.uniform(60, 180)), float(np.deg2rad(rng.uniform(-opening + 4, opening - 4)))
        size = float(rng.uniform(5, 15))
        place = (8 + reach * float(np.cos(turn)), 95 + reach * float(np.sin(turn)))
        hole = sheet.ellipse(place, (size, size * float(rng.uniform(0.7, 1))), float(rng.uniform(0, 180)))
        sheet.ink(hole, (205, 145, 40), 0.75)
        sheet.raise_by(-7 * hole)
    sheet.ink(sheet.line(arc.astype(np.float32), 15), vary(rng, pick(rng, _RINDS)))
    return sheet


def egg_box(rng: np.random.Generator) -> Sheet:
    """Draw a pulp box for six eggs, open or closed."""
    pulp = vary(rng, pick(rng, _PULP))
    sheet = Sheet(180, 250, pulp, gloss=0.03)
    mask = sheet.panel(8, 8, 172, 242, 20)
    sheet.body(mask, pulp)
    sheet.raise_by(pillow(mask, 12) * np.float32(2))
    x, y = sheet.grid()
    is_open = chance(rng, 0.6)
    egg = pick(rng, _EGGS)
    for row in (54, 125, 196):
        for column in (53, 127):
            if is_open:
                sheet.ink(sheet.ellipse((column, row), (35, 34)), (80, 75, 68), 0.75)
                shell = sheet.ellipse((column, row), (27, 31))
                sheet.ink(shell, vary(rng, egg))
                sheet.raise_by(pillow(shell, 29) - 6 * sheet.ellipse((column, row), (35, 34)))
            else:
                reach = np.hypot(x - column, (y - row) * 0.95) / 34
                sheet.raise_by((26 * np.sqrt(np.clip(1 - reach**2, 0, 1))).astype(np.float32))
    if not is_open:
        label = sheet.panel(28, 98, 152, 152, 4)
        sheet.ink(label, vary(rng, pick(rng, ((245, 235, 200), (250, 215, 90), (150, 200, 120)))))
        sheet.height = sheet.height * (1 - label) + 36 * label
        sheet.ink(sheet.text("EGGS", (90, 125), 96, 5), (70, 50, 40))
    sheet.tint((1 + 0.06 * cloud(rng, sheet.shape, 4)).astype(np.float32))
    return sheet
