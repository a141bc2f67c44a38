"""From an ideal scene to a photograph: light, colour cast, blur, noise, JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from models.demo.brush import FloatMap, chance, cloud

Photo = npt.NDArray[np.uint8]


def photograph(rng: np.random.Generator, scene: FloatMap) -> Photo:
    """Light a scene and take its picture.

    Args:
        rng: source of randomness.
        scene: float32 (h, w, 3), RGB, 0-255.

    Returns:
        uint8 (h, w, 3), RGB.
    """
    lit = scene * _light(rng, (scene.shape[0], scene.shape[1]))[..., None]
    warmth, green = rng.uniform(-0.1, 0.1), rng.uniform(-0.03, 0.03)
    cast = np.asarray([1 + warmth, 1 + green, 1 - warmth], dtype=np.float32)
    toned = 255 * np.clip(lit * cast / 255, 0, 1) ** np.float32(rng.uniform(0.85, 1.18))
    return _jpeg(rng, _noise(rng, _blur(rng, toned.astype(np.float32))))


def _light(rng: np.random.Generator, shape: tuple[int, int]) -> FloatMap:
    """Brightness factor, float32 (h, w): a slope, a lamp's spot, vignetting, sometimes a bystander's shadow."""
    height, width = shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.22)
    light = rng.uniform(0.8, 1.12) + slope * (x * np.cos(turn) + y * np.sin(turn))
    spot_x, spot_y = rng.uniform(-1, 1, 2)
    light += rng.uniform(0, 0.22) * np.exp(-((x - spot_x) ** 2 + (y - spot_y) ** 2) / 0.5)
    light -= rng.uniform(0, 0.12) * (x**2 + y**2) / 2
    if chance(rng, 0.3):
        turn, edge = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.9)
        reach = x * np.cos(turn) + y * np.sin(turn) + 0.15 * cloud(rng, shape, max(shape) / 3)
        softness = rng.uniform(0.03, 0.2)
        light *= 1 - rng.uniform(0.12, 0.4) / (1 + np.exp(-np.clip((reach - edge) / softness, -30, 30)))
    brightness: FloatMap = np.clip(light, 0.25, 1.5).astype(np.float32)
    return brightness


def _blur(rng: np.random.Generator, picture: FloatMap) -> FloatMap:
    """Defocus or camera shake, in half of the pictures; float32 (h, w, 3) in and out."""
    unit = min(picture.shape[:2]) / 320
    sharp, defocused = 0.5, 0.85
    dice = float(rng.random())
    if dice < sharp:
        return picture
    blurred: FloatMap
    if dice < defocused:
        blurred = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 1.1)) * unit)
        return blurred
    length = max(3, round(float(rng.uniform(2, 5)) * unit))
    kernel = np.zeros((length, length), dtype=np.float32)
    turn, half = rng.uniform(0, np.pi), (length - 1) / 2
    for step in np.linspace(-half, half, 4 * length):
        kernel[round(half + step * np.sin(turn)), round(half + step * np.cos(turn))] = 1
    blurred = cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return blurred


def _noise(rng: np.random.Generator, picture: FloatMap) -> Photo:
    """Sensor noise, up to 7 grey levels; float32 (h, w, 3) in, uint8 out."""
    grain = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0, 1) ** 2 * 7)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _jpeg(rng: np.random.Generator, picture: Photo) -> Photo:
    """JPEG artefacts of quality 50-95; uint8 (h, w, 3) RGB in and out."""
    quality = int(rng.integers(50, 96))
    done, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        message = "cannot compress a rendered tray"
        raise RuntimeError(message)
    unpacked: Any = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(unpacked[..., ::-1], dtype=np.uint8)
