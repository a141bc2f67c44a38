"""Container images that the files of this folder name: each has a tag or a digest, and a release has digests only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from checks.findings import Findings

if TYPE_CHECKING:
    from pathlib import Path

OWN: Final = ("steelyard", "steelyard-cuda")
"""Images that are built here; kustomize's `images` gives them their digests."""
PINNED: Final = re.compile(r"@sha256:[0-9a-f]{64}$")
_LINE: Final = re.compile(r"^(?P<head>\s*(?:- )?image:\s+|ARG \w+_IMAGE=)(?P<image>\S+)\s*$", re.MULTILINE)
_TAG: Final = re.compile(r":(?P<tag>[\w.-]+)(?:@sha256:[0-9a-f]{64})?$")


def image_files(folder: Path) -> list[Path]:
    """Return the files of ``folder`` in which images are named."""
    manifests = sorted([*folder.glob("base/*.yaml"), *folder.glob("overlays/*/*.yaml")])
    return [file for file in (folder / "Dockerfile", folder / "compose.yaml", *manifests) if file.is_file()]


def images_in(text: str) -> list[str]:
    """Return the images that ``text`` names, as a Dockerfile's argument or as a manifest's or compose's image."""
    return [match["image"] for match in _LINE.finditer(text)]


def is_own(image: str) -> bool:
    """Return whether ``image`` is built from this repository."""
    return _TAG.sub("", image).split("@")[0] in OWN


def check_images(folder: Path, *, release: bool) -> Findings:
    """Return images that could be another tomorrow; those without a digest count only for a release."""
    found = Findings()
    loose: set[str] = set()
    for file in image_files(folder):
        for image in images_in(file.read_text(encoding="utf-8")):
            tag = _TAG.search(image)
            if PINNED.search(image):
                continue
            if tag is None or tag["tag"] == "latest":
                found.errors.append(f"{file.relative_to(folder)}: {image} names no version")
            elif not is_own(image):
                loose.add(image)
    if loose:
        line = f"{len(loose)} images have a tag but no digest ({', '.join(sorted(loose))}): make pin"
        (found.errors if release else found.skipped).append(line)
    return found


def pin_text(text: str, digests: dict[str, str]) -> str:
    """Return ``text`` with ``@sha256:...`` behind every image that ``digests`` (image -> digest) knows."""
    return _LINE.sub(
        lambda match: (
            f"{match['head']}{match['image']}@{digests[match['image']]}" if match["image"] in digests else match[0]
        ),
        text,
    )
