"""A service as ``steelyard serve`` starts it: its answers, its metrics, what it opens and what it leaves behind."""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import running
from prometheus_client.parser import text_string_to_metric_families

from models import demo
from serve.cluster import processes_of
from serve.home import remembered_folder
from serve.replica_metrics import FETCH_DEADLINE_S

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service

JPEG = {"Content-Type": "image/jpeg"}
SAMPLE = json.loads(demo.SAMPLE_TRAY.with_suffix(".json").read_text())
NEAR = 0.5
"""Least overlap (intersection over union) of a product that was put on the tray and the box that is its."""
ANNOUNCED_S = 10.0
"""Time after the first answer in which the service must have said on its terminal that it is ready."""
METRICS_LATENCY_S = 30.0
"""Time after which a count must show: replicas report to the node every few seconds."""


def overlap(first: list[float], second: dict[str, float]) -> float:
    """Return the intersection over union of a box x1, y1, x2, y2 and one of an answer."""
    width = min(first[2], second["x2"]) - max(first[0], second["x1"])
    height = min(first[3], second["y2"]) - max(first[1], second["y1"])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (first[2] - first[0]) * (first[3] - first[1]) + (second["x2"] - second["x1"]) * (
        second["y2"] - second["y1"]
    )
    return width * height / (areas - width * height)


def fits(product: dict[str, Any], found: dict[str, Any]) -> bool:
    """Return whether a box of an answer is that of a product that was put on the tray."""
    return bool(product["name"] == found["name"]) and overlap(product["box"], found["box"]) >= NEAR


def everything_of(service: Service) -> list[psutil.Process]:
    """Return all processes of the service, the one that was started first."""
    folder = remembered_folder(service.home)
    assert folder is not None
    return [psutil.Process(service.process.pid), *processes_of(folder)]


def test_the_sample_tray_holds_what_was_put_on_it(service: Service) -> None:
    """The better demo version finds each product at its place, and nothing that is not there."""
    service.settle("2")
    answer = httpx.post(f"{service.url}/v1/detect", content=service.tray, headers=JPEG, timeout=30)
    assert answer.status_code == 200, answer.text
    found = answer.json()["images"][0]["results"]
    for product in SAMPLE["products"]:
        assert any(fits(product, each) for each in found), product
    for each in found:
        assert any(fits(product, each) for product in SAMPLE["products"]), each


def test_three_bodies_give_one_answer(service: Service) -> None:
    """Raw, multipart and JSON agree to the last digit."""
    url = f"{service.url}/v1/detect"
    raw = httpx.post(url, content=service.tray, headers=JPEG, timeout=30)
    form = httpx.post(url, files={"file": ("tray.jpg", service.tray, "image/jpeg")}, timeout=30)
    text = httpx.post(url, json={"image": base64.b64encode(service.tray).decode()}, timeout=30)
    results = [answer.json()["images"][0]["results"] for answer in (raw, form, text)]
    assert results[0]
    assert results[0] == results[1] == results[2]


def test_an_answer_names_its_release_and_its_request(service: Service) -> None:
    """Headers and metadata agree; the request's id comes back once; no server is named."""
    answer = httpx.post(
        f"{service.url}/v1/detect", content=service.tray, headers={**JPEG, "X-Request-Id": "tray-7"}, timeout=30
    )
    metadata = answer.json()["metadata"]
    assert answer.headers["X-Model-Version"] == metadata["version"]
    assert answer.headers["X-Weights-Digest"] == metadata["digest"]
    assert answer.headers.get_list("X-Request-Id") == ["tray-7"]
    assert "decode;dur=" in answer.headers["Server-Timing"]
    assert "Server" not in answer.headers
    unnamed = httpx.get(f"{service.url}/healthz/live", timeout=30)
    assert len(unnamed.headers.get_list("X-Request-Id")) == 1


def listeners_of(service: Service) -> list[tuple[str, Any]]:
    """Return the name of the process and the address of everything that listens."""
    found = []
    for process in everything_of(service):
        with contextlib.suppress(psutil.NoSuchProcess):  # HAProxy is replaced by a successor now and then
            found += [
                (process.name(), connection.laddr)
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
            ]
    return found


def test_nothing_listens_beyond_loopback(service: Service) -> None:
    """Of all processes, each that listens does so on loopback, and the HTTP port is HAProxy's."""
    port = int(service.url.rpartition(":")[2])
    listeners: list[tuple[str, Any]] = []
    for _ in range(10):  # HAProxy's successor may have come after the processes were listed
        listeners = listeners_of(service)
        open_ones = [each for each in listeners if each[1].ip.removeprefix("::ffff:") not in {"127.0.0.1", "::1"}]
        assert open_ones == []
        if any(address.port == port for _, address in listeners):
            break
    assert {name for name, address in listeners if address.port == port} == {"haproxy"}


def test_secrets_and_sockets_are_the_owners_alone(service: Service) -> None:
    """Another user of the machine finds neither token nor sockets nor state."""
    folder = remembered_folder(service.home)
    assert folder is not None
    for path in (folder, service.home):
        assert path.stat().st_mode & 0o077 == 0
    assert (folder / "token").stat().st_mode & 0o077 == 0
    commands = [" ".join(process.cmdline()) for process in everything_of(service)]
    token = (folder / "token").read_text()
    assert not [command for command in commands if token in command]


def test_slow_headers_are_ended(service: Service) -> None:
    """A client that does not finish its headers does not keep its connection."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\n")
        answer = slow.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_second_start_and_a_taken_port_are_refused_in_one_line(service: Service, tmp_path: Path) -> None:
    """Neither touches the running service, and neither shows a traceback."""
    again = service.cli("serve", timeout=60)
    port = service.url.rpartition(":")[2]
    beside = service.cli("serve", "--home", str(tmp_path / "home"), "--port", port, timeout=60)
    for refused, words in ((again, f"already on {service.url}"), (beside, f"port {port} on 127.0.0.1 is in use")):
        assert refused.returncode == 2
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert service.detect()["images"][0]["results"]


@pytest.mark.long
def test_sigterm_ends_every_process_within_ten_seconds(service: Service, tmp_path: Path) -> None:
    """A second service, with two models and autoscaling, serves beside the first and leaves nothing behind."""
    models = [f"--model=tray={demo.weights_path(1)}", f"--model=other={demo.weights_path(2)}"]
    scaling = ["--min-replicas=1", "--max-replicas=2"]
    beside = running.start(tmp_path / "home", tmp_path / "serve.log", *models, *scaling)
    try:
        assert beside.detect()["metadata"]["model"] == "tray"
        other = httpx.post(f"{beside.url}/v1/models/other/detect", content=service.tray, headers=JPEG, timeout=30)
        assert other.json()["metadata"]["model"] == "other"
        assert service.detect()["metadata"]["model"] == "checkout"
        deadline = time.monotonic() + ANNOUNCED_S
        while "curl" not in beside.log.read_text():
            assert time.monotonic() < deadline, "the service does not say where it answers"
            time.sleep(0.1)  # the service under test lives in real time
        command = next(line for line in beside.log.read_text().splitlines() if "curl" in line)
        pasted = subprocess.run(shlex.split(command), capture_output=True, check=True, timeout=30)
        assert json.loads(pasted.stdout)["metadata"]["model"] == "tray"
        processes = everything_of(beside)
        folder = remembered_folder(beside.home)
        begun = time.monotonic()
        beside.process.send_signal(signal.SIGTERM)
        assert beside.process.wait(timeout=20) == 0
        assert time.monotonic() - begun < 10.0
    finally:
        running.stop(beside)
    assert folder is not None
    assert not folder.exists()
    assert running.running_ones(processes) == []
    assert processes_of(folder) == []
    assert not (beside.home / "service.json").exists()
    assert service.detect()["images"][0]["results"]


def test_the_module_prints_what_a_pod_needs() -> None:
    """The manifest's environment comes from the same function as that of ``steelyard serve``."""
    printed = subprocess.run(
        [sys.executable, "-m", "serve.cluster", "--print-env"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in printed.splitlines()


def test_metrics_hold_the_whole_node_and_can_be_parsed(service: Service) -> None:
    """Whichever replica is asked, all of them are there, and HAProxy and Ray; long after the last flip, too.

    It stands last: a gauge that nobody refreshes would be gone by now.
    """
    before = images_answered(service)
    for _ in range(6):
        service.detect()
    deadline = time.monotonic() + METRICS_LATENCY_S
    while images_answered(service) < before + 6:
        assert time.monotonic() < deadline, "the answers do not show in the metrics"
        time.sleep(0.5)  # the service under test lives in real time
    families = metrics_of(service)
    assert {"ray_steelyard_http_requests", "ray_steelyard_stage_seconds", "ray_steelyard_generation"} <= families.keys()
    assert any(name.startswith("ray_serve_haproxy") for name in families)
    generations = {sample.labels["replica"] for sample in families["ray_steelyard_generation"].samples}
    assert len(generations) >= 2


def metrics_of(service: Service) -> dict[str, Any]:
    """Return the metric families of ``/metrics`` by name, as Prometheus' own client parses them."""
    answer = httpx.get(f"{service.url}/metrics", timeout=FETCH_DEADLINE_S + 5)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def images_answered(service: Service) -> float:
    """Return how many images all replicas have answered, as ``/metrics`` says."""
    family = metrics_of(service).get("ray_steelyard_images")
    samples = family.samples if family else []
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["outcome"] == "ok")
