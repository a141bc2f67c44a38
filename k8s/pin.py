"""Write the digests of all images into the files that name them; ``make pin``. Needs Docker's buildx and a registry.

A tag may stand for another image tomorrow; ``tag@sha256:...`` does not. Our own images are pinned where they are
deployed, by kustomize's ``images``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from checks.findings import find_tool, run_tool
from checks.images import PINNED, image_files, images_in, is_own, pin_text

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).resolve().parent
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def look_up(docker: str, image: str) -> str | None:
    """Return the digest that the registry serves for ``image``, or None where it does not say."""
    command = [docker, "buildx", "imagetools", "inspect", image, "--format", "{{.Manifest.Digest}}"]
    code, out, _ = run_tool(command)
    digest = out.strip()
    return digest if code == 0 and _DIGEST.fullmatch(digest) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Pin what has no digest yet; return 1 and change nothing where one cannot be looked up."""
    given = sys.argv[1:] if arguments is None else arguments
    folder = Path(given[0]) if given else HERE
    docker = find_tool("docker")
    if docker is None:
        print("error: there is no docker here to ask a registry with", file=sys.stderr)
        return 1
    texts = {file: file.read_text(encoding="utf-8") for file in image_files(folder)}
    wanted = {image for text in texts.values() for image in images_in(text)}
    loose = sorted(image for image in wanted if not PINNED.search(image) and not is_own(image))
    digests = {image: look_up(docker, image) for image in loose}
    unknown = [image for image, digest in digests.items() if digest is None]
    if unknown:
        print(f"error: no digest of {', '.join(unknown)}: is the registry reachable?", file=sys.stderr)
        return 1
    known = {image: digest for image, digest in digests.items() if digest is not None}
    for file, text in texts.items():
        file.write_text(pin_text(text, known), encoding="utf-8")
    print(f"{len(known)} images pinned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
