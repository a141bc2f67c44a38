"""The command line: exit codes, JSON on stdout and nothing else, one line on stderr, and what each command asks for."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from PIL import Image
from typer.testing import CliRunner

from models.errors import InvalidOptionError
from models.rollout.order import Order
from models.weights.fake_registry import FakeRegistry
from models.weights.register import Registration
from models.weights.registry import DIGEST_TAG, PROMOTABLE_TAG, SOURCE_TAG
from serve.cli import wrong_python
from serve.client import Rollout, ServiceError, SteelyardClient
from serve.commands import rollouts, target
from serve.commands.application import app
from serve.commands.serving import announced_as_json
from serve.fake_service import FakeService
from serve.home import ServiceRecord, write_record
from serve.ingress import create_app
from serve.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result


class FakeFleet(FakeService):
    """A service whose rollouts answer from a script, one state a question, where one is given."""

    def __init__(self) -> None:
        """Serve the model ``checkout``."""
        super().__init__("checkout")
        self.script: list[dict[str, object]] = []

    async def status(self, model: str) -> dict[str, object]:
        """Return the next state of the script, its last one again and again."""
        if not self.script:
            return await super().status(model)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Site:
    """A running service with a fleet of its own, and a home folder that points to it."""

    def __init__(self, fleet: FakeFleet, url: str, home: Path) -> None:
        """Keep the parts."""
        self.fleet = fleet
        self.url = url
        self.home = home


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run each test in its own folder and without settings from outside."""
    for name in [name for name in os.environ if name.startswith("STEELYARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rollouts, "POLL_S", 0.001)


@pytest.fixture(name="site")
def _site(tmp_path: Path) -> Iterator[Site]:
    """Serve the real HTTP edge over a fake service, and note it in the home folder as `steelyard serve` does."""
    fleet = FakeFleet()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    settings = Settings(models=("checkout",), home=tmp_path / "home")
    server = uvicorn.Server(uvicorn.Config(create_app(fleet, settings), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.started
    settings.home.mkdir()
    (settings.home / "service.json").write_text(
        json.dumps({"url": url, "pid": os.getpid(), "folder": ""}), encoding="utf-8"
    )
    yield Site(fleet, url, settings.home)
    server.should_exit = True
    thread.join(10)
    listener.close()


def steelyard(*arguments: object) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def picture(path: Path) -> Path:
    """Write a small grey JPEG."""
    out = io.BytesIO()
    Image.new("RGB", (640, 480), (90, 90, 90)).save(out, "JPEG")
    path.write_bytes(out.getvalue())
    return path


def state(**changes: object) -> dict[str, Any]:
    """Return a rollout's state in which one replica serves version 1."""
    replica = {"id": "replica-1", "version": "1", "state": "serving"}
    return {
        "model": "checkout", "desired": "1", "serving": "1", "generation": 1, "state": "serving",
        "step": None, "reason": None, "replicas": [replica],
    } | changes  # fmt: skip


def test_detect_prints_a_table(site: Site, tmp_path: Path) -> None:
    """The boxes of one picture, and who saw them."""
    done = steelyard("detect", picture(tmp_path / "a.jpg"), "--home", site.home, "--conf", 0)

    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].split() == ["class", "confidence", "x1", "y1", "x2", "y2"]
    assert done.stdout.splitlines()[-1] == "4 boxes by checkout version 1"
    assert done.stderr == ""


def test_detect_prints_json_and_nothing_else(site: Site, tmp_path: Path) -> None:
    """Each picture's answer as the service gave it, in the order asked for."""
    files = [picture(tmp_path / f"{number}.jpg") for number in range(6)]
    done = steelyard("detect", *files, "--url", site.url, "--json", "--conf", 0, "--max-det", 2)
    images = json.loads(done.stdout)["images"]

    assert done.exit_code == 0
    assert [image["file"] for image in images] == [str(file) for file in files]
    assert all(len(image["results"]) == 2 and image["metadata"]["version"] == "1" for image in images)


def test_detect_goes_on_after_a_bad_picture(site: Site, tmp_path: Path) -> None:
    """One that is no picture and one that is missing are reported; the third is answered; the exit code is 1."""
    (tmp_path / "text.jpg").write_text("not a picture", encoding="utf-8")
    files = [tmp_path / "text.jpg", tmp_path / "none.jpg", picture(tmp_path / "good.jpg")]
    done = steelyard("detect", *files, "--url", site.url, "--json")
    text, none, good = json.loads(done.stdout)["images"]

    assert done.exit_code == 1
    assert text["error"]["code"] == "invalid_image"
    assert "does not exist" in none["error"]["detail"]
    assert "results" in good
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "error"]


def test_detect_saves_one_picture(site: Site, tmp_path: Path) -> None:
    """The drawn picture is written in the format of its name, and the source is untouched."""
    source = picture(tmp_path / "a.jpg")
    before = source.read_bytes()
    done = steelyard("detect", source, "--url", site.url, "--save", tmp_path / "out.png", "--conf", 0)

    assert done.exit_code == 0
    assert Image.open(tmp_path / "out.png").format == "PNG"
    assert source.read_bytes() == before


def test_detect_saves_several_pictures_under_names_of_their_own(site: Site, tmp_path: Path) -> None:
    """Two files of one stem do not overwrite each other in the folder."""
    (tmp_path / "b").mkdir()
    files = [picture(tmp_path / "a.jpg"), picture(tmp_path / "b" / "a.jpg")]
    done = steelyard("detect", *files, "--url", site.url, "--save", tmp_path / "out")

    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.jpg", "a.jpg"]


@pytest.mark.parametrize("save", ["out.gif", "a.jpg"])
def test_detect_refuses_a_save_that_cannot_be(tmp_path: Path, save: str) -> None:
    """A format we do not write, and the source itself, are refused before anything is sent."""
    done = steelyard("detect", picture(tmp_path / "a.jpg"), "--save", tmp_path / save)

    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")


def test_detect_without_a_service_says_so_once(tmp_path: Path) -> None:
    """A service out of reach is one line and exit code 2, however many pictures were asked for."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = steelyard("detect", *(picture(tmp_path / f"{n}.jpg") for n in range(3)), "--url", url)

    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "steelyard serve" in done.stderr


def test_models_and_versions_of_the_service(site: Site) -> None:
    """Both lists come from the running service, as JSON just as the API gives them."""
    models = steelyard("models", "--home", site.home, "--json")
    versions = steelyard("versions", "checkout", "--home", site.home, "--json")
    table = steelyard("versions", "checkout", "--home", site.home)

    assert json.loads(models.stdout)["models"][0]["name"] == "checkout"
    assert [row["version"] for row in json.loads(versions.stdout)["versions"]] == ["1", "2", "3"]
    assert table.stdout.split()[:2] == ["version", "digest"]


def test_promote_waits_for_all_replicas(site: Site) -> None:
    """The service is asked to promote and then asked until every replica serves the version."""
    done = steelyard("promote", "checkout", "2", "--home", site.home)

    assert done.exit_code == 0
    assert site.fleet.detectors["checkout"].serving is not None
    assert site.fleet.detectors["checkout"].serving.version == "2"
    assert "version 2 serves on its replica" in done.stdout


def test_promote_hands_on_reason_and_order(site: Site) -> None:
    """What waives a gate and the trials before the commit reach the service."""
    options = ("--force", "--reason", "hot fix", "--shadow", "10m", "--canary", "5%,25%", "--step", "90s")
    done = steelyard("promote", "checkout", "2", "--home", site.home, *options)

    assert done.exit_code == 0
    order = Order(force="hot fix", shadow_s=600.0, canary=(0.05, 0.25), step_s=90.0)
    assert site.fleet.orders == [("2", "hot fix", order)]


def test_promote_waits_longer_for_trials(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own time is not taken from that of the replicas."""
    waited: list[float] = []
    follow = rollouts.follow

    def noting(*arguments: Any, timeout: float, **named: Any) -> Rollout:
        waited.append(timeout)
        return follow(*arguments, timeout=timeout, **named)

    monkeypatch.setattr(rollouts, "follow", noting)
    for options in ((), ("--shadow", "10m", "--canary", "5%,25%", "--step", "90s")):
        assert steelyard("promote", "checkout", "2", "--home", site.home, "--timeout", "7", *options).exit_code == 0
    assert waited == [7.0, 7.0 + 600.0 + 2 * 90.0]


def test_promote_without_a_service_keeps_the_order(stocked: Stocked) -> None:
    """The registry holds it until a service reads the alias."""
    done = steelyard("promote", "checkout", "2", "--home", stocked.home, "--allow-contract-change")
    desired = stocked.registry.desired("checkout")

    assert done.exit_code == 0
    assert desired is not None
    assert desired.order == Order(allow_contract_change=True)


def test_promote_refuses_force_without_a_reason(site: Site) -> None:
    """Before anything is sent."""
    done = steelyard("promote", "checkout", "2", "--home", site.home, "--force")

    assert done.exit_code == 2
    assert "--reason" in done.stderr
    assert site.fleet.orders == []


def test_promote_prints_the_last_state_as_json(site: Site) -> None:
    """Programs read the rollout as the API gives it."""
    done = steelyard("promote", "checkout", "2", "--home", site.home, "--json")

    assert done.exit_code == 0
    assert json.loads(done.stdout)["serving"] == "2"
    assert done.stderr == ""


def test_promote_refused_at_once_exits_with_one(site: Site) -> None:
    """A version that may not be promoted is an outcome: its reason on stderr, exit code 1."""
    done = steelyard("promote", "checkout", "3", "--home", site.home)

    assert done.exit_code == 1
    assert "golden" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_promote_of_an_unknown_version_exits_with_two(site: Site) -> None:
    """A version that does not exist could not be tried."""
    done = steelyard("promote", "checkout", "99", "--home", site.home)

    assert done.exit_code == 2
    assert "no version" in done.stderr


def test_promote_rejected_by_the_fleet_exits_with_one(site: Site) -> None:
    """Step and reason of the fleet's refusal are told, and that the old version serves on."""
    site.fleet.script = [
        state(desired="2", state="preparing"),
        state(desired="2", state="rejected", step="golden", reason="it sees nothing"),
    ]
    done = steelyard("promote", "checkout", "2", "--home", site.home, "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["step"] == "golden"
    assert "refused at step golden: it sees nothing (version 1 serves on)" in done.stderr


def test_promote_without_waiting_returns_at_once(site: Site) -> None:
    """--no-wait reports the state after the request, whatever it is."""
    site.fleet.script = [state(desired="2", state="preparing")]
    done = steelyard("promote", "checkout", "2", "--home", site.home, "--no-wait", "--json")

    assert done.exit_code == 0
    assert json.loads(done.stdout)["state"] == "preparing"


def test_promote_that_never_arrives_times_out(site: Site) -> None:
    """The wait has an end, which says how far it came."""
    site.fleet.script = [state(desired="2", state="holding")]
    done = steelyard("promote", "checkout", "2", "--home", site.home, "--timeout", 1)

    assert done.exit_code == 2
    assert "0 of 1 replicas" in done.stderr


def test_rollback_goes_to_the_version_before(site: Site) -> None:
    """After a promote the rollback serves the old version again, under a new generation."""
    steelyard("promote", "checkout", "2", "--home", site.home)
    done = steelyard("rollback", "checkout", "--home", site.home, "--json")

    assert done.exit_code == 0
    assert json.loads(done.stdout)["serving"] == "1"


def test_rollback_needs_a_service(tmp_path: Path) -> None:
    """Without one it says how to choose the version by hand."""
    done = steelyard("rollback", "checkout", "--home", tmp_path)

    assert done.exit_code == 2
    assert "steelyard promote checkout VERSION" in done.stderr


class Stocked:
    """A home folder without a service, whose registry holds three versions of ``checkout``; 3 may not be promoted."""

    def __init__(self, home: Path, registry: FakeRegistry) -> None:
        """Keep the parts."""
        self.home = home
        self.registry = registry


@pytest.fixture(name="stocked")
def _stocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stocked:
    """Fill an in-memory registry and let the commands open it."""
    registry = FakeRegistry()
    files = tmp_path / "files"
    files.mkdir()
    for number in (1, 2, 3):
        (files / "model.onnx").write_bytes(bytes([number]))
        tags = {DIGEST_TAG: f"{number}" * 64, SOURCE_TAG: f"{number}" * 64, PROMOTABLE_TAG: "true"}
        if number == 3:
            tags[PROMOTABLE_TAG] = "it sees nothing"
        registry.create_version("checkout", files, tags=tags, metrics={"mAP50-95": 0.5})
    for module in ("weights", "rollouts"):
        monkeypatch.setattr(f"serve.commands.{module}.open_registry", lambda _settings, **_options: registry)
    return Stocked(tmp_path / "home", registry)


def test_promote_without_a_service_moves_the_alias(stocked: Stocked) -> None:
    """The registry names the version, and the answer says that nothing serves it yet."""
    done = steelyard("promote", "checkout", "2", "--home", stocked.home)
    desired = stocked.registry.desired("checkout")

    assert done.exit_code == 0
    assert desired is not None
    assert desired.version == "2"
    assert "the next start serves it" in done.stdout


def test_promote_without_a_service_refuses_the_blind(stocked: Stocked) -> None:
    """A version that may not be promoted is refused with exit code 1, and nothing changes."""
    done = steelyard("promote", "checkout", "3", "--home", stocked.home)

    assert done.exit_code == 1
    assert "it sees nothing" in done.stderr
    assert stocked.registry.desired("checkout") is None


def test_lists_without_a_service_come_from_the_registry(stocked: Stocked) -> None:
    """The shapes are those of the API, so that a program need not know whether a service runs."""
    steelyard("promote", "checkout", "1", "--home", stocked.home)
    models = json.loads(steelyard("models", "--home", stocked.home, "--json").stdout)["models"]
    versions = json.loads(steelyard("versions", "checkout", "--home", stocked.home, "--json").stdout)["versions"]
    rollout = json.loads(steelyard("rollout", "checkout", "--home", stocked.home, "--json").stdout)

    assert [(row["name"], row["version"], row["state"]) for row in models] == [("checkout", "1", "promoted")]
    assert [(row["version"], row["aliases"]) for row in versions] == [("1", ["production"]), ("2", []), ("3", [])]
    assert (rollout["desired"], rollout["serving"], rollout["state"]) == ("1", None, "not running")


def test_register_tells_what_is_new(stocked: Stocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name defaults to the file's stem; a file that is registered already is said to be."""
    asked: list[tuple[str, str]] = []

    def register(_registry: FakeRegistry, source: str, *, model: str, **_options: object) -> Registration:
        """Note what was asked for; version 2 is that file already."""
        asked.append((source, model))
        return Registration(stocked.registry.version("checkout", "2"), created=False)

    monkeypatch.setattr("models.weights.register.register", register)
    text = steelyard("register", "Tray Best.pt", "--home", stocked.home)
    printed = json.loads(steelyard("register", "x.pt", "--model", "m", "--home", stocked.home, "--json").stdout)

    assert asked == [("Tray Best.pt", "tray-best"), ("x.pt", "m")]
    assert "is registered already: tray-best version 2" in text.stdout
    assert (printed["version"], printed["new"], printed["promotable"]) == ("2", False, "true")


def test_register_and_promote_is_one_answer(stocked: Stocked, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --promote the JSON on stdout is one document: that of the promotion."""
    monkeypatch.setattr(
        "models.weights.register.register",
        lambda *_, **__: Registration(stocked.registry.version("checkout", "2"), created=True),
    )
    done = steelyard("register", "x.pt", "--model", "checkout", "--promote", "--home", stocked.home, "--json")

    assert done.exit_code == 0
    assert json.loads(done.stdout)["desired"] == "2"


def test_register_of_a_missing_file_exits_with_two(tmp_path: Path) -> None:
    """Nothing was refused: there was nothing there."""
    done = steelyard("register", "nothing/here.pt", "--model", "m", "--home", tmp_path)

    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "here.pt" in done.stderr


def test_register_of_a_broken_file_exits_with_one(stocked: Stocked, tmp_path: Path) -> None:
    """A file that cannot become a release is refused, with the reason in one line."""
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    done = steelyard("register", tmp_path / "broken.onnx", "--home", stocked.home)

    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1


def test_reading_leaves_no_registry_behind(tmp_path: Path) -> None:
    """A slip in --home is told, and makes no folder."""
    models = steelyard("models", "--home", tmp_path / "slip", "--json")
    versions = steelyard("versions", "checkout", "--home", tmp_path / "slip")

    assert json.loads(models.stdout) == {"models": []}
    assert versions.exit_code == 2
    assert not (tmp_path / "slip").exists()


def test_rollout_shows_every_replica(site: Site) -> None:
    """Desired, serving and each replica's state, and the reason where there is one."""
    site.fleet.script = [state(desired="2", state="rejected", step="golden", reason="blind")]
    done = steelyard("rollout", "checkout", "--home", site.home)

    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "checkout: desired 2, serving 1, generation 1, rejected"
    assert "golden: blind" in done.stdout
    assert "replica-1" in done.stdout


class FakeClient:
    """Answers rollouts from a script of states and errors."""

    def __init__(self, *script: dict[str, Any] | ServiceError) -> None:
        """Take the answers in order."""
        self.script = list(script)

    def rollout(self, _model: str) -> Rollout:
        """Return or raise the next of the script, its last one again and again."""
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, ServiceError):
            raise step
        return step  # type: ignore[return-value]


class FakeTime:
    """A clock that moves only when someone sleeps."""

    now = 0.0

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on."""
        self.now += seconds


def follow(*script: dict[str, Any] | ServiceError, timeout: float = 1.0) -> Rollout:
    """Follow a scripted rollout to version 2 in made-up time."""
    moments = FakeTime()
    client: Any = FakeClient(*script)
    return rollouts.follow(
        client,
        "checkout",
        lambda seen: seen["serving"] == "2",
        wanted="2",
        timeout=timeout,
        progress=lambda _step, _fraction: None,
        clock=moments.clock,
        sleep=moments.sleep,
    )


def test_follow_waits_for_the_last_replica() -> None:
    """Serving is committed when the actor says so, but the wait ends when every replica has flipped."""
    two = [{"id": "a", "version": "2", "state": "serving"}, {"id": "b", "version": "1", "state": "holding"}]
    done = [{"id": "a", "version": "2", "state": "serving"}, {"id": "b", "version": "2", "state": "serving"}]

    assert follow(state(), state(serving="2", replicas=two), state(serving="2", replicas=done))["replicas"] == done


def test_follow_survives_a_service_that_is_busy() -> None:
    """A 503 or a lost connection in between is not the end; only the deadline is."""
    lost = ServiceError("gone", code="unreachable")
    busy = ServiceError("later", code="unavailable", status=503)
    done = state(serving="2", replicas=[{"id": "a", "version": "2", "state": "serving"}])

    assert follow(lost, busy, done) == done


def test_follow_ends_on_a_client_error() -> None:
    """A model that vanished will not come back by waiting."""
    with pytest.raises(ServiceError, match="no such"):
        follow(ServiceError("no such model", code="unknown_model", status=404))


def test_follow_overlooks_the_refusal_of_another_version() -> None:
    """A rejection that stood before ours was asked for is not our outcome."""
    done = state(desired="2", serving="2", replicas=[{"id": "a", "version": "2", "state": "serving"}])

    assert follow(state(desired="3", state="rejected"), state(desired="2", state="preparing"), done) == done


def test_follow_tells_when_another_version_overtakes() -> None:
    """Someone else's promote ends the wait: ours will never arrive."""
    with pytest.raises(ServiceError) as caught:
        follow(state(desired="2", state="preparing"), state(desired="3", state="preparing"))

    assert caught.value.code == "superseded"


def test_follow_does_not_take_no_replicas_for_all() -> None:
    """All of none is not done."""
    with pytest.raises(ServiceError) as caught:
        follow(state(serving="2", replicas=[]))

    assert caught.value.code == "rollout_timeout"


def test_a_dead_service_counts_as_none(tmp_path: Path) -> None:
    """The record of a service that crashed is a leftover."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    record = {"url": "http://127.0.0.1:18700", "pid": process.pid, "folder": ""}
    (tmp_path / "service.json").write_text(json.dumps(record), encoding="utf-8")

    assert target.running_service(Settings(home=tmp_path)) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "x", "pid": "y"}', '{"url": "x", "pid": -1, "folder": ""}'])
def test_a_broken_record_counts_as_none(tmp_path: Path, text: str) -> None:
    """Whatever stands in the record, commands fall back to the registry."""
    (tmp_path / "service.json").write_text(text, encoding="utf-8")

    assert target.running_service(Settings(home=tmp_path)) is None


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        ([], {}),
        (["checkout"], {"checkout": None}),
        (["a", "b=w/x.onnx"], {"a": None, "b": "w/x.onnx"}),
        (["My Weights.pt"], {"my-weights": "My Weights.pt"}),
        (["runs/best.onnx"], {"best": "runs/best.onnx"}),
        (["yolo26n.pt"], {"yolo26n": "yolo26n.pt"}),
    ],
)
def test_sources(arguments: list[str], sources: dict[str, str | None]) -> None:
    """NAME, NAME=FILE and FILE alone, in their order."""
    assert target.parse_sources(arguments) == sources


@pytest.mark.parametrize("arguments", [["a", "a=x.pt"], ["a="], ["=x.pt"], ["a b=x.pt"], ["..pt"], [""]])
def test_bad_sources_are_refused(arguments: list[str]) -> None:
    """Twice the same name, no name, no file, or a name that is none."""
    with pytest.raises(InvalidOptionError):
        target.parse_sources(arguments)


def test_serve_says_as_json_when_it_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, and only for the record of this very process: another service's leftover says nothing."""
    settings = Settings(home=tmp_path)
    with announced_as_json(settings, 0.001):
        write_record(tmp_path, ServiceRecord(url="http://127.0.0.1:1", pid=os.getpid() + 1))
        time.sleep(0.02)
        write_record(tmp_path, ServiceRecord(url="http://127.0.0.1:18700", pid=os.getpid()))
        deadline = time.monotonic() + 5
        printed = ""
        while not printed and time.monotonic() < deadline:
            printed = capsys.readouterr().out
            time.sleep(0.001)

    assert json.loads(printed) == {"url": "http://127.0.0.1:18700", "pid": os.getpid()}
    assert capsys.readouterr().out == ""


def test_serve_hands_settings_and_sources_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options win over the environment, --model names what is served, and stdout stays clear for JSON."""
    asked: list[tuple[Settings, dict[str, str | None]]] = []

    def run(settings: Settings, sources: dict[str, str | None]) -> int:
        """Note what was asked for."""
        asked.append((settings, sources))
        print("for people")  # noqa: T201 - what the launcher does
        return 0

    monkeypatch.setattr("serve.launch.run", run)
    monkeypatch.setenv("STEELYARD_REPLICAS", "3")
    first = steelyard("serve", "--home", tmp_path, "--port", 18701, "--model", "a", "--model", "b=w.pt", "--json")
    second = steelyard("serve", "--home", tmp_path, "--replicas", 2)

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout == ""
    assert asked[0][1] == {"a": None, "b": "w.pt"}
    assert (asked[0][0].models, asked[0][0].port, asked[0][0].replicas) == (("a", "b"), 18701, 3)
    assert (asked[1][1], asked[1][0].replicas) == ({"checkout": None}, 2)


def test_illegal_settings_are_one_line(tmp_path: Path) -> None:
    """Options that contradict each other end before anything is started."""
    done = steelyard("serve", "--home", tmp_path, "--min-replicas", 3)

    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "max_replicas" in done.stderr


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bug costs the user a line, not a traceback; --debug brings it back."""

    def broken(_settings: Settings) -> None:
        """Fail as a bug would, in two lines."""
        message = "first line\nsecond line"
        raise RuntimeError(message)

    monkeypatch.setattr("serve.commands.weights.open_registry", broken)
    done = steelyard("models", "--home", tmp_path)
    debugged = steelyard("--debug", "models", "--home", tmp_path)

    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "RuntimeError" in done.stderr
    assert isinstance(debugged.exception, RuntimeError)


@pytest.mark.parametrize(("version", "good"), [((3, 10, 9), False), ((3, 11, 0), True), ((4, 0, 0), True)])
def test_an_old_python_is_told(version: tuple[int, int, int], good: bool) -> None:  # noqa: FBT001 - a case of the test
    """One line that names the version needed."""
    line = wrong_python(version)

    assert (line is None) == good
    assert good or (line is not None and "3.11" in line)


def test_help_imports_nothing_heavy() -> None:
    """Help must be quick: nothing that takes long to import may be loaded for it."""
    program = (
        "import sys; from typer.testing import CliRunner; from serve.commands.application import app;"
        "done = CliRunner().invoke(app, ['--help']); assert done.exit_code == 0, done.output;"
        "print([n for n in ('ray', 'mlflow', 'torch', 'cv2', 'numpy', 'PIL', 'httpx', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "variable", "admin", "record", "url", "sent"),
    [
        ("given", "variable", "admin", "local", None, "given"),
        (None, None, "admin", "local", None, "local"),
        (None, None, "admin", None, None, "admin"),
        (None, None, None, None, None, None),
        (None, None, "admin", "local", "http://192.0.2.7:8000", "admin"),
        (None, None, None, "local", "http://192.0.2.7:8000", None),
        (None, "variable", None, "local", "http://192.0.2.7:8000", "variable"),
        ("given", None, None, "local", "http://192.0.2.7:8000", "given"),
    ],
)
def test_which_key_goes_where(  # noqa: PLR0917 - one row of a table
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: str | None,
    variable: str | None,
    admin: str | None,
    record: str | None,
    url: str | None,
    sent: str | None,
) -> None:
    """The one that was given; else the one that the home's own service left there, which goes nowhere else."""
    for name, value in (("STEELYARD_API_KEY", variable), ("STEELYARD_ADMIN_KEY", admin)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    write_record(tmp_path, ServiceRecord("http://127.0.0.1:18700", os.getpid(), record))
    client = target.connect(target.read_settings(tmp_path), url, given)

    assert isinstance(client, SteelyardClient)
    assert client.url == (url or "http://127.0.0.1:18700")
    assert client._http.headers.get("Authorization") == (sent and f"Bearer {sent}")
