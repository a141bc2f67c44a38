"""compose.yaml: the schema of the compose specification, and what each container must give up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from checks.findings import Findings, find_tool, judge_tool
from checks.sense import SECRET_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA: Final = "vendor.compose-spec"
"""The specification's own schema, which check-jsonschema brings along."""
_RIGHTS: Final = (
    ("read_only", True),
    ("cap_drop", ["ALL"]),
    ("security_opt", ["no-new-privileges:true"]),
)


def check_compose(file: Path) -> Findings:
    """Return what the schema and our own rules say of the compose file."""
    if not file.is_file():
        return Findings([f"{file.name} is missing"])
    found = Findings()
    command = find_tool("check-jsonschema")
    if command is None:
        found.skipped.append(f"{file.name} was not held against its schema: pip install check-jsonschema")
    else:
        found.add(judge_tool([command, "--builtin-schema", SCHEMA, str(file)], file.name))
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name, service in body.get("services", {}).items():
        found.errors += [f"{file.name} {name}: {problem}" for problem in _rights(service)]
        found.errors += [f"{file.name} {name}: {problem}" for problem in _references(service, body, file.parent)]
    return found


def _rights(service: dict[str, Any]) -> Iterator[str]:
    for name, right in _RIGHTS:
        if service.get(name) != right:
            yield f"{name} is not {right}"
    for name in ("healthcheck", "mem_limit", "pids_limit"):
        if name not in service:
            yield f"{name} is missing"
    for port in service.get("ports", ()):
        if not str(port).startswith("127.0.0.1:"):
            yield f"the port {port} is not on loopback"
    for name, value in service.get("environment", {}).items():
        if any(word in name for word in SECRET_WORDS) and not str(value).startswith("/"):
            yield f"{name} is written down; take it from a file in secrets"


def _references(service: dict[str, Any], body: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield names that stand for nothing; those of networks, volumes and secrets the schema does not follow."""
    for kind in ("networks", "secrets"):
        for name in service.get(kind, ()):
            if name not in body.get(kind, {}):
                yield f"{kind} has no {name}"
    for name in service.get("depends_on", ()):
        if "healthcheck" not in body["services"].get(name, {}):
            yield f"it waits for {name}, whose health nobody checks"
    for mount in service.get("volumes", ()):
        source = str(mount).partition(":")[0]
        if source.startswith("."):
            if not (folder / source).exists():
                yield f"it mounts {source}, which is not there"
        elif source not in body.get("volumes", {}):
            yield f"volumes has no {source}"
