"""Check what this folder holds, without a cluster and without Docker; part of ``make check``.

Manifests against the schemas of their kinds, one by one and as each overlay builds them, then what no schema sees; the
Dockerfile, compose.yaml, images and alert rules. What cannot be checked on this machine is said, never passed over.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml
from checks import alerts, compose, dockerfile, images, manifests, overlays, schemas, sense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from checks.findings import Findings

HERE: Final = Path(__file__).resolve().parent


def definitions() -> Path:
    """Return the folder of the custom resource definitions, which may be absent."""
    shared = Path(os.environ.get("STEELYARD_SHARED", "../shared"))
    return (shared if shared.is_absolute() else HERE.parent / shared) / "data" / "crds"


def check_folder(folder: Path, crds: Path, *, release: bool) -> tuple[Findings, int]:
    """Return what is wrong below ``folder``, and how many manifests were checked.

    crds: folder of the custom resource definitions. release: images without a digest are errors. Raises yaml.YAMLError.
    """
    parts = [folder / "base", *sorted(path for path in folder.glob("components/*") if path.is_dir())]
    written = [each for part in parts for each in manifests.read(part)]
    built, found = overlays.build_overlays(folder)
    if not written:
        found.errors.append(f"{folder / 'base'} holds no manifest")
    # The files too, since a message that names a file helps more, and an overlay may not have been built.
    found.add(schemas.check_schemas([*written, *(each for overlay in built.values() for each in overlay)], crds))
    for cluster in (written, *built.values()):
        found.add(sense.check_sense(cluster))
    found.add(dockerfile.check_dockerfile(folder / "Dockerfile"))
    found.add(compose.check_compose(folder / "compose.yaml"))
    found.add(images.check_images(folder, release=release))
    found.add(alerts.check_alerts(folder))
    return found, len(written) + sum(len(overlay) for overlay in built.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folder and print what was found; return 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description="Check the manifests, the Dockerfile and what lies beside them.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    parser.add_argument("--release", action="store_true", help="refuse images without a digest")
    parser.add_argument("--write", action="store_true", help=f"make {alerts.COPY} of {alerts.RULES} first")
    given = parser.parse_args(arguments)
    if given.write:
        rules = (given.folder / alerts.RULES).read_text(encoding="utf-8")
        (given.folder / alerts.COPY).write_text(alerts.rule_manifest(rules), encoding="utf-8")
    try:
        found, count = check_folder(given.folder, definitions(), release=given.release)
    except yaml.YAMLError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    skipped, errors = list(dict.fromkeys(found.skipped)), list(dict.fromkeys(found.errors))
    for line in skipped:
        print(f"skipped: {line}")
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    print(f"{count} manifests checked, {len(errors)} errors, {len(skipped)} skipped")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
