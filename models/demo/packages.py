"""Sprites of packaged goods: milk, can, water, chocolate, pasta, yoghurt."""

from __future__ import annotations

import numpy as np

from models.demo.brush import Colour, FloatMap, Sheet, chance, cloud, pick, pillow, vary

_WHITE: Colour = (246, 246, 242)
_STEEL: Colour = (190, 193, 198)
_BRIGHT: tuple[Colour, ...] = (
    (200, 30, 40),
    (25, 85, 175),
    (30, 130, 75),
    (235, 120, 25),
    (45, 45, 55),
    (120, 45, 130),
)


def _roll(sheet: Sheet, half_width: FloatMap) -> FloatMap:
    """Height, float32 (h, w), of a round body along y that is `half_width`, float32 (h, 1), thick; sprite pixels."""
    x, _ = sheet.grid()
    across = (x - (sheet.shape[1] - 1) / 2) / np.maximum(half_width, 1)
    return (half_width * np.sqrt(np.clip(1 - across**2, 0, 1))).astype(np.float32)


def milk_carton(rng: np.random.Generator) -> Sheet:
    """Draw a milk carton on its back: gable, screw cap, coloured waves."""
    accent = vary(rng, pick(rng, ((30, 95, 185), (45, 140, 70), (205, 45, 55), (70, 165, 215))))
    sheet = Sheet(124, 256, _WHITE, gloss=0.25)
    sheet.body(sheet.panel(10, 62, 114, 250, 2), _WHITE)
    sheet.raise_by(pillow(sheet.cover, 6) * np.float32(4))
    front = 5
    gable = sheet.polygon([(10, 64), (114, 64), (104, 22), (20, 22)])
    sheet.body(gable, (222, 224, 226))
    fin = sheet.panel(18, 5, 106, 26, 2)
    sheet.body(fin, accent)
    _, y = sheet.grid()
    sheet.raise_by((gable * np.clip((y - 20) / 44, 0.15, 1) * 24).astype(np.float32) * (sheet.height < front))
    sheet.ink(sheet.line([(11, 63), (113, 63)], 2), (160, 165, 170))
    cap = sheet.ellipse((62, 45), (15, 14))
    sheet.ink(cap, accent)
    sheet.raise_by(pillow(cap, 6))
    t = np.linspace(10, 114, 24)
    swell, phase, level = float(rng.uniform(5, 13)), float(rng.uniform(0, 6)), float(rng.uniform(172, 200))
    wave = np.stack([t, level + swell * np.sin(t / 17 + phase)], axis=1)
    sheet.ink(sheet.polygon(np.concatenate([wave, [[114, 250], [10, 250]]]).astype(np.float32)), accent)
    sheet.ink(sheet.text("MILK", (62, 108), 84, 7), accent)
    if chance(rng, 0.6):
        for _ in range(4):
            spot = (float(rng.uniform(22, 102)), float(rng.uniform(134, 166)))
            sheet.ink(sheet.ellipse(spot, (float(rng.uniform(5, 12)), 6), float(rng.uniform(0, 180))), (40, 40, 45))
    else:
        sheet.ink(sheet.ellipse((62, 212), (20, 20)), _WHITE)
    return sheet


def can(rng: np.random.Generator) -> Sheet:
    """Draw a drinks can, mostly lying, sometimes standing with its tab up."""
    paint = vary(rng, pick(rng, _BRIGHT))
    if chance(rng, 0.2):
        return _can_lid(rng, paint)
    sheet = Sheet(120, 216, paint, gloss=0.95)
    half = np.full((216, 1), 52.0, dtype=np.float32)
    ramp = np.arange(22, dtype=np.float32)
    half[:22, 0] = 40 + np.clip(ramp - 4, 0, 12)
    half[-22:, 0] = half[:22, 0][::-1]
    rows = np.arange(4, 213)
    edges = np.concatenate([np.stack([60 - half[rows, 0], rows], 1), np.stack([60 + half[rows, 0], rows], 1)[::-1]])
    sheet.body(sheet.polygon(edges.astype(np.float32)), paint)
    sheet.raise_by(_roll(sheet, half))
    sheet.ink(sheet.panel(0, 0, 120, 17), _STEEL)
    sheet.ink(sheet.panel(0, 199, 120, 216), _STEEL)
    accent = pick(rng, (_WHITE, (250, 215, 80), (230, 230, 240)))
    style = int(np.searchsorted((0.4, 0.7), rng.random()))
    if style == 0:
        t = np.linspace(0, 120, 20)
        swoosh = np.stack([t, 150 - 26 * np.sin(t / 38)], axis=1).astype(np.float32)
        sheet.ink(sheet.line(swoosh, int(rng.integers(8, 22))), accent)
    elif style == 1:
        sheet.ink(sheet.ellipse((60, 108), (44, 44)), accent)
        sheet.ink(sheet.ellipse((60, 108), (36, 36)), paint)
    else:
        for y in (34, 168):
            sheet.ink(sheet.panel(0, y, 120, y + 13), accent)
    sheet.ink(sheet.text(pick(rng, ("COLA", "SODA", "FIZZ", "LIME")), (60, 106), 78, 7), accent)
    return sheet


def _can_lid(rng: np.random.Generator, paint: Colour) -> Sheet:
    """Draw the standing can from above, its side painted `paint` (RGB 0-255)."""
    sheet = Sheet(216, 216, _STEEL, gloss=0.6)
    wall = sheet.ellipse((108, 108), (57, 57))
    sheet.body(wall, paint)
    sheet.raise_by(40 * wall)
    for radius, tone, rise in ((52, 205, 5), (46, 150, -7), (42, 192, 3)):
        ring = sheet.ellipse((108, 108), (radius, radius))
        sheet.ink(ring, (tone, tone + 2, tone + 6))
        sheet.raise_by(rise * ring)
    turn = float(rng.uniform(0, 360))
    cos, sin = float(np.cos(np.deg2rad(turn))), float(np.sin(np.deg2rad(turn)))
    mouth = sheet.ellipse((108 + 22 * cos, 108 + 22 * sin), (14, 11), turn)
    sheet.ink(mouth, (110, 112, 118))
    tab = sheet.ellipse((108 - 12 * cos, 108 - 12 * sin), (21, 11), turn)
    sheet.ink(tab, (228, 230, 234))
    sheet.ink(sheet.ellipse((108 - 20 * cos, 108 - 20 * sin), (8, 6), turn), (120, 122, 128))
    sheet.raise_by(5 * tab)
    return sheet


def water_bottle(rng: np.random.Generator) -> Sheet:
    """Draw a clear plastic bottle: cap, shoulder, ribs, paper label."""
    water = vary(rng, pick(rng, ((165, 205, 228), (175, 215, 215), (150, 195, 230))))
    sheet = Sheet(92, 260, water, gloss=1.0)
    rows = np.arange(260, dtype=np.float32)
    stations = (
        (0, 15),
        (24, 15),
        (25, 11),
        (38, 12),
        (70, 35),
        (90, 39),
        (158, 39),
        (172, 35),
        (186, 39),
        (246, 39),
        (257, 34),
    )
    profile = np.interp(rows, *np.asarray(stations).T)
    half = profile.astype(np.float32)[:, None]
    live = np.arange(4, 257)
    left, right = 45.5 - half[live, 0], 45.5 + half[live, 0]
    edges = np.concatenate([np.stack([left, live], axis=1), np.stack([right, live], axis=1)[::-1]])
    sheet.body(sheet.polygon(edges.astype(np.float32)), water, float(rng.uniform(0.72, 0.88)))
    sheet.raise_by(_roll(sheet, half))
    x, y = sheet.grid()
    first_rib = 178
    sheet.raise_by(np.where(y > first_rib, 1.4 * np.sin(y / 3.2), 0).astype(np.float32))
    sheet.ink(np.exp(-(((np.abs(x - 45.5) - 30) / 6) ** 2)).astype(np.float32), (85, 130, 165), 0.45)
    accent = vary(rng, pick(rng, ((25, 90, 180), (35, 145, 95), (215, 60, 80), (90, 60, 150))))
    sheet.body(sheet.panel(29, 4, 62, 25, 2), accent)
    label = sheet.panel(6, 96, 85, 152)
    sheet.body(label, pick(rng, (_WHITE, accent, (225, 240, 248))))
    sheet.ink(sheet.panel(6, 96, 85, 106), accent)
    sheet.ink(sheet.text(pick(rng, ("AQUA", "SPRING", "STILL")), (45.5, 129), 64, 5), (40, 75, 130))
    return sheet


def chocolate_bar(rng: np.random.Generator) -> Sheet:
    """Draw a chocolate bar, closed or torn open over its squares."""
    paper = vary(rng, pick(rng, ((95, 45, 130), (165, 25, 45), (35, 50, 105), (195, 150, 60), (25, 105, 75))))
    sheet = Sheet(116, 244, paper, gloss=0.35)
    cocoa: Colour = vary(rng, (82, 46, 28), 8)
    tear = int(rng.integers(70, 130)) if chance(rng, 0.65) else 0
    sheet.body(sheet.panel(10, 6, 106, 238, 2), paper)
    sheet.raise_by(pillow(sheet.cover, 5) * np.float32(2.4))
    if tear:
        sheet.ink(sheet.panel(10, 0, 106, tear), cocoa)
        for row in range(3):
            for column in range(3):
                top, left = 8 + row * 38, 13 + column * 31
                square = sheet.panel(left, top, left + 28, top + 34, 3) * (sheet.grid()[1] < tear)
                sheet.ink(square, cocoa, 0.5)
                sheet.raise_by(pillow(square, 6))
        steps = np.linspace(8, 108, 12)
        jag = np.stack([steps, tear + rng.uniform(-9, 5, 12)], axis=1)
        foil = np.concatenate([jag, [[108, tear + 17], [8, tear + 17]]]).astype(np.float32)
        sheet.ink(sheet.polygon(foil), (218, 218, 222))
        sheet.raise_by((4 * cloud(rng, sheet.shape, 9) * sheet.polygon(foil)).astype(np.float32))
    else:
        sheet.ink(sheet.panel(10, 0, 106, 17), (214, 212, 208))
        for column in range(2):
            sheet.ink(sheet.panel(24 + column * 36, 36, 56 + column * 36, 70, 4), cocoa)
    sheet.ink(sheet.panel(10, 224, 106, 240), (214, 212, 208))
    middle = (tear + 17 + 222) / 2 if tear else 140
    accent = pick(rng, ((250, 225, 150), _WHITE))
    sheet.ink(sheet.text("CHOCO", (58, middle), 82, 6), accent)
    for offset in (-22, 22):
        sheet.ink(sheet.panel(18, middle + offset - 2, 98, middle + offset + 2), accent)
    return sheet


def pasta_box(rng: np.random.Generator) -> Sheet:
    """Draw a cardboard box of pasta with a window on strands or tubes."""
    card = vary(rng, pick(rng, ((25, 75, 160), (175, 35, 40), (40, 115, 70), (235, 195, 60), (30, 120, 160))))
    sheet = Sheet(140, 252, card, gloss=0.2)
    sheet.body(sheet.panel(8, 6, 132, 246, 3), card)
    sheet.raise_by(pillow(sheet.cover, 6) * np.float32(3.2))
    window = sheet.panel(30, 112, 110, 228, 34) if chance(rng, 0.5) else sheet.panel(24, 112, 116, 228, 6)
    sheet.ink(window, (120, 85, 35))
    if chance(rng, 0.5):
        for x in np.linspace(16, 124, 30):
            lean = rng.uniform(-7, 7, 2)
            strand = sheet.line([(float(x + lean[0]), 104), (float(x + lean[1]), 236)], 3) * window
            sheet.ink(strand, vary(rng, (240, 205, 115)))
    else:
        for _ in range(60):
            place = (float(rng.uniform(26, 114)), float(rng.uniform(112, 228)))
            turn = float(rng.uniform(0, 180))
            sheet.ink(sheet.ellipse(place, (14, 6.5), turn) * window, (165, 120, 50))
            sheet.ink(sheet.ellipse(place, (13, 5), turn) * window, vary(rng, (244, 210, 125)))
    bright = 420
    band: Colour = pick(rng, (_WHITE, (250, 235, 190)))
    sheet.ink(sheet.panel(8, 42, 132, 92), band)
    sheet.ink(sheet.text("PASTA", (70, 67), 104, 6), card if sum(card) < bright else (150, 30, 40))
    sheet.ink(sheet.panel(8, 22, 132, 28), band, 0.7)
    return sheet


def yoghurt(rng: np.random.Generator) -> Sheet:
    """Draw a yoghurt cup from above: pleated foil lid with a tab and a printed fruit."""
    fruit = pick(rng, ((215, 40, 70), (75, 70, 160), (245, 160, 70), (120, 170, 60)))
    sheet = Sheet(220, 220, _WHITE, gloss=0.55)
    tab = sheet.polygon([(150, 165), (168, 148), (207, 178), (200, 200), (178, 206)])
    lid = sheet.ellipse((106, 106), (94, 94))
    sheet.body(tab, (225, 226, 230))
    sheet.body(lid, (228, 229, 232))
    x, y = sheet.grid()
    reach, angle = np.hypot(x - 106, y - 106), np.arctan2(y - 106, x - 106)
    pleats = np.clip((reach - 76) / 14, 0, 1) * np.cos(angle * 44)
    sheet.raise_by(30 * np.maximum(lid, 0.5 * tab) + (2.2 * pleats).astype(np.float32))
    disc = sheet.ellipse((106, 106), (80, 80))
    sheet.ink(disc, pick(rng, (_WHITE, (250, 225, 232), (228, 232, 250), (255, 240, 205))))
    sheet.raise_by(-3 * disc)
    sheet.ink(sheet.ellipse((106, 106), (80, 80)) - sheet.ellipse((106, 106), (71, 71)), fruit)
    for _ in range(int(rng.integers(2, 5))):
        place = (float(rng.uniform(70, 142)), float(rng.uniform(116, 148)))
        size = float(rng.uniform(14, 21))
        sheet.ink(sheet.ellipse(place, (size, size * 0.88), float(rng.uniform(0, 180))), vary(rng, fruit))
        sheet.ink(sheet.ellipse((place[0] - 5, place[1] - 6), (4, 3)), _WHITE, 0.7)
    sheet.ink(sheet.text("YOG", (106, 82), 78, 7), vary(rng, (60, 60, 110)))
    return sheet
