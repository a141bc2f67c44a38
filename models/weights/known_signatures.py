"""The signatures of the versions that this machine has served, for a start without the registry.

``signatures/<digest>/<model>@<version>`` beside the cached releases holds the tag's text as it was when the version was
last let in, empty for a version that was not signed. It is kept by version, for one release may have several. What is
read here is judged again before every load: whoever edits it gains nothing that a tag in the registry would not give.
"""

from __future__ import annotations

import logging
import re
import shutil
from typing import TYPE_CHECKING

from models.errors import ReleaseFaultError
from models.weights.durable import replace_file
from models.weights.manifest import is_model_name
from models.weights.signing import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_log = logging.getLogger(__name__)
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_VERSION = re.compile(r"[0-9A-Za-z._-]{1,64}\Z")


class KnownSignatures:
    """One small file a version; several processes may share the root."""

    def __init__(self, root: Path) -> None:
        """Keep the root folder; nothing is created before the first ``keep``."""
        self._root = root / "signatures"

    def get(self, model: str, version: str, digest: str) -> str | None:
        """Return the signature last let in, "" for none; None where this machine knows nothing of the version."""
        path = self._path(model, version, digest)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                return file.read(MAX_TEXT + 1).decode("ascii")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("what is known of the signature of version %s of %s is unreadable: %s", version, model, error)
            return None

    def keep(self, model: str, version: str, digest: str, signature: str) -> None:
        """Remember ``signature`` durably. Raises ReleaseFaultError with step ``fetch`` where the disk refuses."""
        path = self._path(model, version, digest)
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, signature.encode())
        except OSError as error:
            msg = f"The signature of version {version} of {model} cannot be kept on this machine ({error.strerror})."
            raise ReleaseFaultError(msg, step="fetch") from error

    def prune(self, keep: Collection[str]) -> None:
        """Forget the signatures of all releases whose digest is not in ``keep``."""
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, model: str, version: str, digest: str) -> Path | None:
        if not (_DIGEST.match(digest) and is_model_name(model) and _VERSION.match(version)):
            return None
        return self._root / digest / f"{model}@{version}"
