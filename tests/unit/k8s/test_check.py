"""The checks as `make check` runs them: they pass our folder, and fail it with any one thing broken in it."""

from __future__ import annotations

from pathlib import Path

import check
import pytest
from k8s_folder import K8S, replace

NOWHERE = Path("nowhere")


@pytest.fixture(name="alone")
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the tools and the definitions out, which take seconds and have tests of their own."""
    monkeypatch.setenv("STEELYARD_SHARED", str(NOWHERE))
    for module in (check.alerts, check.compose, check.dockerfile, check.overlays):
        monkeypatch.setattr(module, "find_tool", lambda _: None)


def errors_of(folder: Path, *, crds: Path = NOWHERE, release: bool = False) -> list[str]:
    """Return what the checks find in ``folder``."""
    found, count = check.check_folder(folder, crds, release=release)
    assert count > 0
    return list(found.errors)


def test_own_folder_is_sound() -> None:
    """Nothing is wrong with what this repository ships, as far as this machine's tools can say."""
    assert errors_of(K8S, crds=check.definitions()) == []


@pytest.mark.usefixtures("alone")
def test_what_cannot_be_checked_is_said(folder: Path) -> None:
    """Each absent tool, and each kind without its definition, is reported as skipped, not as good."""
    found, _ = check.check_folder(folder, NOWHERE, release=False)

    said = "\n".join(found.skipped)
    for part in ("RayService/", "PodMonitor/", "ServiceMonitor/", "PrometheusRule/", "STEELYARD_SHARED"):
        assert part in said
    for tool in ("hadolint", "kubectl", "check-jsonschema", "promtool"):
        assert tool in said


@pytest.mark.usefixtures("alone")
def test_a_release_needs_digests(folder: Path) -> None:
    """The same folder that passes while developing is refused for a release while an image is named by a tag alone."""
    before = errors_of(folder)
    after = [error for error in errors_of(folder, release=True) if error not in before]

    assert len(after) == 1
    assert "make pin" in after[0]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("base/networkpolicy.yaml", ("policyTypes: [Egress]", "policyType: [Egress]"), "policyType"),
        (
            "base/redis.yaml",
            ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
            "readOnlyRootFilesystem",
        ),
        ("Dockerfile", ("USER 10001:10001", "USER steelyard"), "USER steelyard"),
        ("compose.yaml", ('"127.0.0.1:8000:8000"', '"8000:8000"'), "loopback"),
        ("compose.yaml", ("chrislusf/seaweedfs:4.48", "chrislusf/seaweedfs:latest"), "names no version"),
        ("monitoring/alerts.yaml", ("> 300", "> 301"), "is not what"),
    ],
)
def test_main_fails_on_one_broken_thing(
    folder: Path, capsys: pytest.CaptureFixture[str], file: str, change: tuple[str, str], words: str
) -> None:
    """A mistake in any kind of file gives the exit code 1 and a line that names it."""
    replace(folder / file, *change)

    assert check.main([str(folder)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_main_fails_on_text_that_is_no_yaml(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be read is one line, and no traceback."""
    (folder / "base" / "namespace.yaml").write_text("a: [", encoding="utf-8")

    assert check.main([str(folder)]) == 1
    assert "namespace.yaml" in capsys.readouterr().err


@pytest.mark.usefixtures("alone")
def test_main_fails_on_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without manifests is a mistake, not a success; whatever else is missing is named with it."""
    assert check.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    for missing in ("holds no manifest", "Dockerfile", "compose.yaml", "monitoring/alerts.yaml", "overlays/cpu"):
        assert missing in said


@pytest.mark.usefixtures("alone")
def test_the_operators_rules_are_made_of_the_others(folder: Path) -> None:
    """`--write` brings the Prometheus operator's copy up to date with a changed rule."""
    replace(folder / "monitoring" / "alerts.yaml", "> 300", "> 240")
    assert any("is not what" in error for error in errors_of(folder))

    check.main([str(folder), "--write"])

    assert not any("is not what" in error for error in errors_of(folder))
    assert "> 240" in (folder / "components" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
