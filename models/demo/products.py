"""The twelve products on sale: name, drawing and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.demo import packages, produce

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from models.demo.brush import Sheet


@dataclass(frozen=True)
class Product:
    """One class of the demo detector.

    Attributes:
        name: class name, snake_case.
        draw: makes a sprite; each call a different specimen.
        length: long side of the sprite as a share of the image's short side, 0-1.
    """

    name: str
    draw: Callable[[np.random.Generator], Sheet]
    length: float


PRODUCTS: tuple[Product, ...] = (
    Product("apple", produce.apple, 0.21),
    Product("banana", produce.banana, 0.34),
    Product("bread", produce.bread, 0.42),
    Product("can", packages.can, 0.28),
    Product("cheese", produce.cheese, 0.28),
    Product("chocolate_bar", packages.chocolate_bar, 0.33),
    Product("egg_box", produce.egg_box, 0.36),
    Product("milk_carton", packages.milk_carton, 0.43),
    Product("orange", produce.orange, 0.20),
    Product("pasta_box", packages.pasta_box, 0.41),
    Product("water_bottle", packages.water_bottle, 0.46),
    Product("yoghurt", packages.yoghurt, 0.21),
)
