"""Labelled pictures of supermarket checkout trays, drawn from a seed.

    render_tray = counter and tray → throw products until the tray is full → light them → photograph

The scene is drawn at twice its size and shrunk, which softens every edge. A map of owners says which product is seen
at each pixel: boxes are cut from it, so they are tight to what is visible, and no product lies in the picture
without a label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from models.demo.camera import photograph
from models.demo.products import PRODUCTS
from models.demo.surroundings import coin, counter_with_tray, receipt

if TYPE_CHECKING:
    from models.demo.brush import FloatMap, Sheet

CLASS_NAMES: tuple[str, ...] = tuple(product.name for product in PRODUCTS)

_OVERSAMPLE = 2
_LEAST_VISIBLE = 0.4
_LEAST_INSIDE = 0.7
_SOLID = 0.5
_LEAST_SIDE = 4.0
_LEAST_SIZE = 64
_MOST_PRODUCTS = 10
_CROWD = 7
_THROWS_A_PRODUCT = 8


@dataclass(frozen=True)
class Tray:
    """One rendered picture and what lies in it.

    Attributes:
        image: uint8 (h, w, 3), RGB.
        boxes: float32 (n, 4), x1 y1 x2 y2 in pixels, tight to the visible part, inside the image.
        classes: int32 (n,), indices into CLASS_NAMES.
    """

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]


@dataclass
class _Scene:
    """A scene being laid, at drawing scale.

    Attributes:
        colour: float32 (h, w, 3), RGB, 0-255.
        owner: int16 (h, w), index of the product seen at a pixel, -1 where there is none.
        light: unit vector (3,) towards the lamp; z points at the camera.
        classes: class index of each product laid.
        areas: pixels each product covers, hidden ones and those outside the image included.
    """

    colour: FloatMap
    owner: npt.NDArray[np.int16]
    light: npt.NDArray[np.float64]
    classes: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Patch:
    """A sprite turned and scaled to its place; all maps cover the same window of the scene.

    Attributes:
        left: x of the window in scene pixels, may be negative.
        top: y of the window in scene pixels, may be negative.
        albedo: float32 (h, w, 3), RGB, 0-255.
        cover: float32 (h, w), 0-1.
        height: float32 (h, w), scene pixels.
        gloss: 0-1.
    """

    left: int
    top: int
    albedo: FloatMap
    cover: FloatMap
    height: FloatMap
    gloss: float


def render_tray(seed: int, size: int | tuple[int, int] = 320) -> Tray:
    """Render one labelled tray.

    Args:
        seed: >= 0; the same seed and size give the same tray.
        size: side of a square image, or (width, height); pixels, >= 64.

    Returns:
        The picture with one box and class for each product.
    """
    width, height = (size, size) if isinstance(size, int) else size
    if min(width, height) < _LEAST_SIZE:
        message = f"a tray needs at least {_LEAST_SIZE} x {_LEAST_SIZE} pixels, not {width} x {height}"
        raise ValueError(message)
    rng = np.random.default_rng(seed)
    shape = (height * _OVERSAMPLE, width * _OVERSAMPLE)
    slant, turn = rng.uniform(0.35, 0.75), rng.uniform(0, 2 * np.pi)
    light = np.asarray([np.sin(slant) * np.cos(turn), np.sin(slant) * np.sin(turn), np.cos(slant)])
    scene = _Scene(counter_with_tray(rng, shape), np.full(shape, -1, dtype=np.int16), light)
    _scatter_clutter(rng, scene)
    _scatter_products(rng, scene)
    small = cv2.resize(scene.colour, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    boxes, classes = _labels(scene)
    return Tray(photograph(rng, small), boxes, classes)


def _scatter_clutter(rng: np.random.Generator, scene: _Scene) -> None:
    """Lay receipts and coins, which carry no label."""
    height, width = scene.owner.shape
    for draw, share, chance in ((receipt, 0.4, 0.2), (coin, 0.07, 0.15), (coin, 0.08, 0.15)):
        if rng.random() < chance:
            place = (float(rng.uniform(0.1, 0.9)) * width, float(rng.uniform(0.1, 0.9)) * height)
            patch = _turn(rng, draw(rng), share * min(height, width), place)
            _paint(scene, patch, owner=-1)


def _scatter_products(rng: np.random.Generator, scene: _Scene) -> None:
    """Throw products; one that would hide too much of another, or of itself, is thrown again or left out."""
    height, width = scene.owner.shape
    wanted = int(rng.integers(3, _MOST_PRODUCTS + 1))
    zoom = float(rng.uniform(0.78, 1.2)) * (1.0 if wanted < _CROWD else 0.88)
    may_hide = float(rng.choice([0.0, 0.12, 0.3, 1 - _LEAST_VISIBLE]))
    for _ in range(wanted):
        index = int(rng.integers(len(PRODUCTS)))
        sheet = PRODUCTS[index].draw(rng)
        length = PRODUCTS[index].length * zoom * float(rng.uniform(0.88, 1.12)) * min(height, width)
        for _ in range(_THROWS_A_PRODUCT):
            place = (float(rng.uniform(0.1, 0.9)) * width, float(rng.uniform(0.1, 0.9)) * height)
            patch = _turn(rng, sheet, length, place)
            if _fits(scene, patch, 1 - may_hide):
                _paint(scene, patch, owner=len(scene.classes))
                scene.classes.append(index)
                scene.areas.append(int(np.count_nonzero(patch.cover > _SOLID)))
                break


def _turn(rng: np.random.Generator, sheet: Sheet, length: float, centre: tuple[float, float]) -> _Patch:
    """Rotate a sprite by any angle and scale its long side to `length` scene pixels, centred at `centre` (x, y)."""
    height, width = sheet.shape
    scale = length / max(height, width)
    angle = float(rng.uniform(0, 2 * np.pi))
    squeeze = float(rng.uniform(0.93, 1.07))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    across, down = height * abs(sin) + width * abs(cos), height * abs(cos) + width * abs(sin)
    window_w, window_h = int(np.ceil(across * 1.08)) + 4, int(np.ceil(down * 1.08)) + 4
    linear = np.asarray([[cos * squeeze, -sin / squeeze], [sin * squeeze, cos / squeeze]])
    shift = np.asarray([window_w / 2, window_h / 2]) - linear @ np.asarray([width / 2, height / 2])
    affine = np.concatenate([linear, shift[:, None]], axis=1)

    def warp(plane: FloatMap, border: int) -> FloatMap:
        """The plane in its window; `border` is an OpenCV border mode."""
        mode = cv2.INTER_LINEAR
        warped: FloatMap = cv2.warpAffine(plane, affine, (window_w, window_h), flags=mode, borderMode=border)
        return warped

    return _Patch(
        left=round(centre[0] - window_w / 2),
        top=round(centre[1] - window_h / 2),
        albedo=warp(sheet.albedo, cv2.BORDER_REPLICATE),
        cover=warp(sheet.cover, cv2.BORDER_CONSTANT),
        height=warp(sheet.height, cv2.BORDER_CONSTANT) * np.float32(scale),
        gloss=sheet.gloss,
    )


def _overlap(scene: _Scene, patch: _Patch) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where patch and image meet: (rows, columns) in the scene and in the patch; both empty if they do not."""
    height, width = scene.owner.shape
    tall, wide = patch.cover.shape
    top, bottom = min(max(patch.top, 0), height), max(min(patch.top + tall, height), 0)
    left, right = min(max(patch.left, 0), width), max(min(patch.left + wide, width), 0)
    bottom, right = max(top, bottom), max(left, right)
    in_scene = (slice(top, bottom), slice(left, right))
    in_patch = (slice(top - patch.top, bottom - patch.top), slice(left - patch.left, right - patch.left))
    return in_scene, in_patch


def _fits(scene: _Scene, patch: _Patch, least_visible: float) -> bool:
    """Whether, with the patch laid on top, it and all products below still show `least_visible` (0-1) of themselves."""
    in_scene, in_patch = _overlap(scene, patch)
    solid = patch.cover > _SOLID
    inside = solid[in_patch]
    if np.count_nonzero(inside) < max(least_visible, _LEAST_INSIDE) * np.count_nonzero(solid):
        return False
    lost = np.bincount(scene.owner[in_scene][inside] + 1, minlength=len(scene.areas) + 1)[1:]
    if not lost.any():
        return True
    seen = np.bincount(scene.owner.ravel() + 1, minlength=len(scene.areas) + 1)[1:]
    touched = lost > 0
    left_over = (seen - lost)[touched] / np.maximum(np.asarray(scene.areas)[touched], 1)
    return bool((left_over >= least_visible).all())


def _paint(scene: _Scene, patch: _Patch, owner: int) -> None:
    """Light a patch, drop its shadow and lay it into the scene."""
    _drop_shadow(scene, patch)
    in_scene, in_patch = _overlap(scene, patch)
    cover = patch.cover[in_patch][..., None]
    lit = _lit(patch, scene.light)[in_patch]
    scene.colour[in_scene] = scene.colour[in_scene] * (1 - cover) + lit * cover
    solid = patch.cover[in_patch] > _SOLID
    scene.owner[in_scene] = np.where(solid, np.int16(owner), scene.owner[in_scene])


def _lit(patch: _Patch, light: npt.NDArray[np.float64]) -> FloatMap:
    """The patch under a lamp: float32 (h, w, 3), RGB, 0-255."""
    slope_x = cv2.Sobel(patch.height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(patch.height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    slope_x, slope_y = np.clip(slope_x, -1.6, 1.6), np.clip(slope_y, -1.6, 1.6)
    norm = np.sqrt(slope_x**2 + slope_y**2 + 1)
    facing = (-slope_x * light[0] - slope_y * light[1] + light[2]) / norm
    shade = np.clip(0.5 + 0.5 * facing / light[2], 0.42, 1.3)
    half = light + np.asarray([0, 0, 1])
    half /= np.linalg.norm(half)
    mirror = np.clip((-slope_x * half[0] - slope_y * half[1] + half[2]) / norm, 0, 1)
    shine = np.maximum(mirror**40 - half[2] ** 40, 0) * 150 * patch.gloss
    lit: FloatMap = np.clip(patch.albedo * shade[..., None] + shine[..., None], 0, 255).astype(np.float32)
    return lit


def _drop_shadow(scene: _Scene, patch: _Patch) -> None:
    """Darken what lies around the patch, on the side away from the lamp."""
    short = min(scene.owner.shape)
    pad = round(short * 0.06)
    throw = min(float(np.percentile(patch.height, 85)) * 0.5, pad * 0.5)
    shift = -scene.light[:2] / scene.light[2] * throw
    tall, wide = patch.cover.shape
    move = np.asarray([[1, 0, pad + shift[0]], [0, 1, pad + shift[1]]], dtype=np.float64)
    shadow = cv2.warpAffine(patch.cover, move, (wide + 2 * pad, tall + 2 * pad))
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(short * 0.011, 1.0)).astype(np.float32)
    cast = _Patch(patch.left - pad, patch.top - pad, patch.albedo, shadow, shadow, 0)
    in_scene, in_patch = _overlap(scene, cast)
    scene.colour[in_scene] *= (1 - 0.55 * shadow[in_patch])[..., None]


def _labels(scene: _Scene) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Boxes, float32 (n, 4) xyxy in image pixels, and classes, int32 (n,), of what is visible."""
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    for number, index in enumerate(scene.classes):
        rows, columns = np.nonzero(scene.owner == number)
        if rows.size == 0:
            continue
        corners = np.asarray([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / _OVERSAMPLE
        if min(corners[2] - corners[0], corners[3] - corners[1]) >= _LEAST_SIDE:
            boxes.append(tuple(corners.tolist()))
            classes.append(index)
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4), np.asarray(classes, dtype=np.int32)
