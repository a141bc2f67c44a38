"""The child that fetches an official Ultralytics checkpoint: it has the network and opens no weights.

``sandbox.run_sandboxed`` starts it with the request ``{"name": file name}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Callable


def main(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Download the named asset into the working folder; returns its file name. Raises ConversionError."""
    progress("download", 0.0)
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset  # noqa: PLC0415 - seconds

    name = str(request["name"])
    if name not in GITHUB_ASSETS_NAMES:
        msg = f"The weights file {name} does not exist, and it is no official Ultralytics name; check the path."
        raise ConversionError(msg)
    try:
        found = Path(attempt_download_asset(name, retry=1))
    except Exception as error:
        msg = f"The official weights {name} could not be downloaded; check the network, or give a local file."
        raise ConversionError(msg) from error
    if not found.is_file():
        msg = f"The official weights {name} could not be downloaded; check the network, or give a local file."
        raise ConversionError(msg)
    progress("download", 1.0)
    return {"file": found.name}
