"""The overlays, built by kustomize as ``kubectl apply -k`` would build them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from checks.findings import Findings, find_tool, run_tool
from checks.manifests import Manifest, parse

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_KUSTOMIZE: Final = (5, 0)
"""Debian 12's kubectl brings 2.0, which knows no `patches` with a target."""
EXPECTED: Final = ("cpu", "dev", "gpu")
_VERSION: Final = re.compile(r"Kustomize Version: v(\d+)\.(\d+)")


def build_overlays(folder: Path) -> tuple[dict[str, list[Manifest]], Findings]:
    """Return the manifests of each overlay of ``folder`` by its name, and what went wrong or could not be done."""
    command, reason = find_kustomize()
    missing = [name for name in EXPECTED if not (folder / "overlays" / name / "kustomization.yaml").is_file()]
    found = Findings([f"overlays/{name}/kustomization.yaml is missing" for name in missing])
    if command is None:
        found.skipped.append(f"the overlays were not built: {reason}")
        return {}, found
    built: dict[str, list[Manifest]] = {}
    for overlay in sorted(path.parent for path in folder.glob("overlays/*/kustomization.yaml")):
        code, out, err = run_tool([command, "kustomize", str(overlay)])
        if code != 0:
            found.errors.append(f"overlays/{overlay.name}: kustomize: {' '.join(err.split())}")
        else:
            built[overlay.name] = parse(out, f"overlays/{overlay.name}")
            # Deprecated fields still work, and will not.
            found.errors += [f"overlays/{overlay.name}: {line}" for line in err.splitlines() if "Warning" in line]
    return built, found


def find_kustomize() -> tuple[str | None, str]:
    """Return the path of a kubectl whose kustomize is new enough, else None and the reason."""
    command = find_tool("kubectl")
    if command is None:
        return None, "there is no kubectl here"
    _, out, err = run_tool([command, "version", "--client"])
    match = _VERSION.search(out + err)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_KUSTOMIZE:
        wanted = ".".join(str(part) for part in OLDEST_KUSTOMIZE)
        return None, f"kubectl's kustomize is {match[1] + '.' + match[2] if match else 'unknown'}, older than {wanted}"
    return command, ""
