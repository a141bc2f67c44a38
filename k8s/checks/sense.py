"""What no schema sees: that names refer to something, that pods give up their privileges, that no secret is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from checks.findings import Findings
from checks.manifests import pod_templates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from checks.manifests import Manifest

ROOT: Final = Path(__file__).resolve().parents[2]
SECRET_WORDS: Final = ("KEY", "TOKEN", "PASSWORD", "SECRET", "CREDENTIAL")
RAY_PORTS: Final = (6379, 8265, 10001, 52365)
"""GCS, dashboard, client server, agent: who reaches one of them runs code in the cluster."""
OPERATOR: Final = "kuberay-operator"
SELECTORS: Final = {
    "NetworkPolicy": ("podSelector", "matchLabels"),
    "PodDisruptionBudget": ("selector", "matchLabels"),
    "PodMonitor": ("selector", "matchLabels"),
    "Service": ("selector",),
    "Deployment": ("selector", "matchLabels"),
    "StatefulSet": ("selector", "matchLabels"),
}


def check_sense(manifests: Sequence[Manifest]) -> Findings:
    """Return what is wrong between the manifests of one cluster, and what a pod must not have."""
    found = Findings()
    config_maps = {m.name for m in manifests if m.kind == "ConfigMap"}
    templates = [(m, template) for m in manifests for template in pod_templates(m.body)]
    labels = [template.get("metadata", {}).get("labels", {}) for _, template in templates]
    for manifest, template in templates:
        found.errors += [f"{manifest}: {problem}" for problem in _pod_problems(template["spec"])]
        for container in template["spec"]["containers"]:
            where = f"{manifest} {container['name']}"
            found.errors += [f"{where}: {problem}" for problem in _container_problems(container, config_maps)]
    for manifest in manifests:
        found.errors += [f"{manifest}: {problem}" for problem in _manifest_problems(manifest, labels)]
    if templates and not any(_closes_everything(manifest) for manifest in manifests):
        source = manifests[0].source.partition("/")[0]
        found.errors.append(f"{source}: no NetworkPolicy closes all pods (an empty podSelector without rules)")
    return found


def _manifest_problems(manifest: Manifest, labels: Sequence[dict[str, str]]) -> Iterator[str]:
    spec = manifest.body.get("spec", {})
    wanted: Any = spec
    for step in SELECTORS.get(manifest.kind, ()):
        wanted = wanted.get(step, {})
    if manifest.kind in SELECTORS and not any(wanted.items() <= found.items() for found in labels):
        yield f"its selector {wanted} finds no pod of these manifests"
    if manifest.kind == "NetworkPolicy":
        yield from _policy_problems(spec)
    elif manifest.kind == "RayService":
        yield from _ray_problems(spec)
    elif manifest.kind == "ConfigMap":
        for name, value in manifest.body.get("data", {}).items():
            if any(word in name for word in SECRET_WORDS) and not str(value).startswith("/"):
                yield f"{name} belongs into a Secret"
    elif manifest.kind == "Secret":
        yield "secrets do not belong into files; create it with kubectl"


def _closes_everything(manifest: Manifest) -> bool:
    spec = manifest.body.get("spec", {})
    return (
        manifest.kind == "NetworkPolicy"
        and spec.get("podSelector") == {}
        and set(spec.get("policyTypes", ())) == {"Ingress", "Egress"}
        and not spec.get("ingress")
        and not spec.get("egress")
    )


def _policy_problems(spec: dict[str, Any]) -> Iterator[str]:
    """Yield rules that let others than these pods and the operator at Ray's ports."""
    for rule in spec.get("ingress", ()):
        peers = [peer.get("podSelector", {}).get("matchLabels", {}) for peer in rule.get("from", [{}])]
        ours = {"steelyard", OPERATOR}
        if all(peer.get("app.kubernetes.io/name") in ours for peer in peers):
            continue
        if "ports" not in rule:
            yield "an ingress rule without ports opens Ray's to others"
        for port in rule.get("ports", ()):
            if port.get("port") in RAY_PORTS:
                yield f"an ingress rule opens Ray's port {port['port']} to others"


def _pod_problems(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false"
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "securityContext names no user but root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile is not RuntimeDefault"
    volumes = {volume["name"] for volume in spec.get("volumes", ())}
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"the volume {volume['name']} is a folder of the host"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"the volume {volume['name']} has no sizeLimit"
    mounted = {mount["name"] for each in spec["containers"] for mount in each.get("volumeMounts", ())}
    # A StatefulSet's claims stand beside the template.
    for name in sorted(mounted - volumes - {"data"}):
        yield f"a container mounts the volume {name}, which the pod does not have"


def _container_problems(container: dict[str, Any], config_maps: set[str]) -> Iterator[str]:
    security = container.get("securityContext", {})
    for name, right in (
        ("runAsNonRoot", True),
        ("allowPrivilegeEscalation", False),
        ("readOnlyRootFilesystem", True),
        ("capabilities", {"drop": ["ALL"]}),
        ("seccompProfile", {"type": "RuntimeDefault"}),
    ):
        if security.get(name) != right:
            yield f"securityContext.{name} is not {right}"
    if "memory" not in container.get("resources", {}).get("limits", {}):
        yield "resources.limits.memory is missing"
    if "readinessProbe" not in container:
        yield "readinessProbe is missing"
    for source in container.get("envFrom", ()):
        name = source.get("configMapRef", {}).get("name")
        if name is not None and name not in config_maps:
            yield f"envFrom names the ConfigMap {name}, which no manifest defines"
    for variable in container.get("env", ()):
        # A path to a secret is none.
        plain = "value" in variable and not variable["value"].startswith("/")
        if plain and any(word in variable["name"] for word in SECRET_WORDS):
            yield f"{variable['name']} is written down; take it from a Secret"


def _ray_problems(spec: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps Ray Serve from its applications, of which the schema sees only a string, and what Ray needs."""
    config = yaml.safe_load(spec["serveConfigV2"])
    for application in config.get("applications", []):
        module, _, attribute = application.get("import_path", "").partition(":")
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if not attribute or not source.is_file():
            yield f"serveConfigV2 imports {application.get('import_path')!r}, which is not in this repository"
    if not config.get("applications"):
        yield "serveConfigV2 holds no application"
    cluster = spec["rayClusterConfig"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches Ray runs code in it"
    if "valueFrom" not in cluster.get("gcsFaultToleranceOptions", {}).get("redisPassword", {}):
        yield "gcsFaultToleranceOptions.redisPassword is not from a Secret"
    if "externalStorageNamespace" in cluster.get("gcsFaultToleranceOptions", {}):
        yield "externalStorageNamespace would be shared by both clusters of an upgrade"
    for group in cluster.get("workerGroupSpecs", ()):
        fewest, now, most = group.get("minReplicas", 0), group.get("replicas", 0), group.get("maxReplicas", 0)
        if not fewest <= now <= most:
            yield f"worker group {group.get('groupName')}: replicas={now} is not within {fewest} to {most}"
