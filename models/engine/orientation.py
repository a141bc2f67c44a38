"""Which way up an image is: one rule for JPEG, PNG and WebP.

The EXIF tag Orientation counts, else XMP's ``tiff:Orientation``, values 1 to 8; damaged or unknown ones mean upright.
Only this tag is looked for. General readers of EXIF follow every offset in the file: 65 535 entries that all point at
the same 20 MB would be copied one by one.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UPRIGHT: Final = 1
EXIF_PREFIX: Final = b"Exif\0\0"
_ORDERS: Final = {b"II*\0": "<", b"MM\0*": ">"}
_ENTRY_BYTES: Final = 12
_TAG: Final = 0x0112
_SHORT, _LONG = 3, 4
_XMP: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return 1 to 8 from an EXIF block (with or without its prefix) and an XMP packet; 1 where neither says so."""
    value = None if exif is None else _in_exif(exif)
    if value is None and xmp is not None:
        found = _XMP.search(xmp)
        value = None if found is None else int(found[1])
    return value if value in range(1, 9) else UPRIGHT  # type: ignore[return-value] # None is in no range


def _in_exif(exif: bytes) -> int | None:
    """Return the tag's value in IFD0, None without one: TIFF 6.0 section 2, EXIF 2.32 section 4.6.4."""
    start = len(EXIF_PREFIX) if exif.startswith(EXIF_PREFIX) else 0
    order = _ORDERS.get(exif[start : start + 4])
    if order is None:
        return None
    value = None
    try:
        (offset,) = struct.unpack_from(f"{order}I", exif, start + 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start + offset)
        first = start + offset + 2
        for at in range(first, min(first + count * _ENTRY_BYTES, len(exif) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
            tag, kind, length = struct.unpack_from(f"{order}HHI", exif, at)
            if tag == _TAG and length == 1 and kind in {_SHORT, _LONG}:
                (value,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), exif, at + 8)
    except struct.error:
        return value
    return value


def turned_bytes(size: int, orientation: int) -> int:
    """Return how many bytes ``make_upright`` takes in all for pixels of ``size`` bytes."""
    return 2 * size if orientation >= 5 else size  # noqa: PLR2004 - these swap the sides


def make_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return ``pixels``, uint8 (h, w, 3), as orientation 1 to 8 wants it seen (EXIF 2.32 section 4.6.4); C-contiguous.

    1 and the mirrored 2, 3 and 4 work in place; 5 to 8 need a second array.
    """
    if orientation in _TURNS:
        return np.asarray(cv2.rotate(pixels, _TURNS[orientation]), np.uint8)
    if orientation in _FLIPS:
        return np.asarray(cv2.flip(pixels, _FLIPS[orientation], dst=pixels), np.uint8)
    if orientation == 5:  # noqa: PLR2004 - mirrored along the main diagonal
        return np.asarray(cv2.transpose(pixels), np.uint8)
    if orientation == 7:  # noqa: PLR2004 - mirrored along the other diagonal
        turned = cv2.transpose(pixels)
        return np.asarray(cv2.flip(turned, -1, dst=turned), np.uint8)
    return pixels


_FLIPS: Final = {2: 1, 3: -1, 4: 0}
_TURNS: Final = {6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
