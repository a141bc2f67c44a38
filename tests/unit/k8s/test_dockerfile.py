"""The Dockerfile is read as Docker reads it, and each promise of the image that it breaks is named."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from checks import dockerfile
from k8s_folder import K8S, replace

if TYPE_CHECKING:
    from pathlib import Path

STAGES = """\
# syntax=docker/dockerfile:1
ARG IMAGE=python:3
FROM ${IMAGE} AS first
ENV A=1 \\
    B="two"
RUN one \\
    && two
FROM first AS second
# a comment
ENV A=3
USER 7:8
VOLUME ["/a", "/b"]
"""


def test_stages_inherit_what_they_build_upon() -> None:
    """Continued lines are one step, and a stage has its base's variables, later ones over earlier ones."""
    stages = dockerfile.read_stages(STAGES)

    assert stages["first"].steps[1] == ("RUN", "one  && two")
    assert stages["second"].environment() == {"A": "3", "B": "two"}
    assert stages["second"].last("USER") == "7:8"
    assert stages["second"].words("VOLUME") == ["/a", "/b"]
    assert stages["first"].words("VOLUME") == []


def test_own_dockerfile_is_clean() -> None:
    """Neither hadolint nor our own rules find anything in our Dockerfile."""
    assert dockerfile.check_dockerfile(K8S / "Dockerfile").errors == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("USER 10001:10001", "USER steelyard", "not the number"),
        ("USER 10001:10001", "USER 10001:10001\nRUN true", "follows USER"),
        ('VOLUME ["/var/lib/steelyard", "/tmp"]', "", "VOLUME"),
        ('CMD ["steelyard", "serve", "--host", "0.0.0.0"]', "CMD steelyard serve", "a shell would take"),
        ("HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \\\n    CMD", "# CMD", "HEALTHCHECK"),
        ("/sbom.cdx.json", "/contents.json", "SBOM"),
        ("python -m pip uninstall --yes pip setuptools wheel", "true", "pip stays"),
        ("*@sha256:????????", "*@md5:????????", "refuses a base"),
        ("AS cuda", "AS gpu", "no stage cuda"),
        ("AS cpu", "AS last", "the last stage"),
    ],
)
def test_broken_promise_is_an_error(folder: Path, old: str, new: str, words: str) -> None:
    """Each thing that the image promises is missed where the Dockerfile drops it."""
    replace(folder / "Dockerfile", old, new)

    assert any(words in error for error in dockerfile.check_dockerfile(folder / "Dockerfile").errors)


def test_hadolint_is_asked(tmp_path: Path) -> None:
    """An unpinned base and a `cd` are reported."""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && ls\n", encoding="utf-8")
    found = dockerfile.check_dockerfile(tmp_path / "Dockerfile")
    if any("hadolint" in line for line in found.skipped):
        pytest.skip(found.skipped[0])

    assert any("DL3007" in error for error in found.errors)


@pytest.mark.parametrize(
    ("image", "allowed", "code"),
    [
        ("python:3.11@sha256:" + "a" * 64, "refused", 0),
        ("python:3.11", "allowed", 0),
        ("python:3.11", "refused", 1),
        ("python:3.11@sha256:" + "a" * 63, "refused", 1),
        ("python:3.11@sha256:" + "a" * 65, "refused", 1),
    ],
)
def test_the_build_refuses_a_base_without_a_digest(image: str, allowed: str, code: int) -> None:
    """The Dockerfile's own step stops the build, unless the builder says that nobody else gets the image."""
    step = dict(dockerfile.read_stages((K8S / "Dockerfile").read_text(encoding="utf-8"))["base"].steps)["RUN"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON_IMAGE": image, "UNPINNED_BASE": allowed}

    done = subprocess.run(["/bin/sh", "-c", step], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert ("make pin" in done.stderr) == (code == 1)
