"""Weights from strangers: real files through the real command, its real sandbox and a real registry. Nothing runs."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from planting import labels, rewrite_manifest
from scratch import saved
from typer.testing import CliRunner

from models.errors import ConversionError, RegistryError, ReleaseRejectedError
from models.types import Thresholds
from models.weights import sandbox
from models.weights.cache import ReleaseCache
from models.weights.keys import KeyFolder
from models.weights.manifest import MANIFEST, ONNX, FileEntry, Manifest, Source
from models.weights.mlflow_registry import MlflowRegistry
from models.weights.registry import DIGEST_TAG
from models.weights.signing import SigningKey
from serve.commands.application import app
from serve.depot import Depot
from serve.faults import FaultPoints
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MARKER = "marker-of-code-that-ran"
MODEL = "m"


class Watch:
    """What children left in their scratch folders: nothing that they write elsewhere would stay unseen."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.children = 0
        self.markers: list[str] = []

    def look(self, scratch: Path) -> None:
        """Note the markers of one child."""
        self.children += 1
        self.markers += [path.name for path in scratch.rglob(f"{MARKER}*")]


@pytest.fixture(name="watch")
def _watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watch:
    """Look into every child's scratch folder before it goes, and leave a mark there should pip or uv be started."""
    watch, original = Watch(), sandbox.run_sandboxed

    def run(module: str, request: Any, scratch: Path, **options: Any) -> dict[str, Any]:
        try:
            return original(module, request, scratch, **options)
        finally:
            watch.look(scratch)

    monkeypatch.setattr(sandbox, "run_sandboxed", run)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pip", "pip3", "uv"):
        (programs / name).write_text(f'#!/bin/sh\ntouch "$HOME/{MARKER}-{name}"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("STEELYARD_") and name != "STEELYARD_SHARED"]:
        monkeypatch.delenv(name)
    return watch


@pytest.fixture(scope="module", name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "home"


def refused(home: Path, file: Path, watch: Watch) -> str:
    """Register ``file`` with the command and return its one line; demand that nothing ran and nothing was stored."""
    done = CliRunner().invoke(app, ["register", str(file), "--model", MODEL, "--home", str(home)])
    assert done.exit_code == 1, done.output
    assert watch.children == 1
    assert watch.markers == []
    assert MlflowRegistry(Settings(home=home).tracking_uri).models() == []
    assert "Traceback" not in done.output
    assert str(home) not in done.stderr
    assert done.stderr.count("\n") == 1
    return str(done.stderr)


# Checkpoints


class Gadget:
    """Calls a function of the reader's own libraries while it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        """Keep what is to be called."""
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def _pip(name: str) -> Gadget:
    from ultralytics.utils.checks import check_requirements  # noqa: PLC0415 - seconds, and only these tests need it

    return Gadget(check_requirements, name)


def _legacy(evil: object, _: Any) -> bytes:
    import torch  # noqa: PLC0415 - likewise

    out = io.BytesIO()
    torch.save({"model": evil}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def _beside(evil: object, model: Any) -> bytes:
    return _zipped({"model": model, "ema": None, "train_args": {}, "extra": evil})


def _in_the_arguments(evil: object, model: Any) -> bytes:
    return _zipped({"model": model, "ema": None, "train_args": {"imgsz": evil}})


def _in_the_state(evil: object, model: Any) -> bytes:
    tensors = dict(model.state_dict())
    tensors["model.0.conv.bias"] = evil
    return _zipped({"model": tensors, "ema": None, "train_args": {}})


def _as_an_attribute(evil: object, model: Any) -> bytes:
    import copy  # noqa: PLC0415 - beside torch

    changed = copy.deepcopy(model)
    changed.model[0].note = evil
    return _zipped({"model": changed, "ema": None, "train_args": {}})


def _as_the_whole_file(evil: object, _: Any) -> bytes:
    return pickle.dumps(evil)


def _zipped(content: object) -> bytes:
    import torch  # noqa: PLC0415 - see _legacy

    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("place", "gadget"),
    [
        (_beside, "shell"),
        (_in_the_arguments, "exec"),
        (_in_the_state, "shell"),
        (_as_an_attribute, "popen"),
        (_legacy, "shell"),
        (_as_the_whole_file, "shell"),
        (_beside, "pip"),
        (_in_the_state, "import"),
    ],
)
def test_a_checkpoint_that_runs_code_is_refused_and_runs_nothing(  # noqa: PLR0917 - fixtures
    scratch_model: Any, watch: Watch, home: Path, tmp_path: Path, place: Callable[[object, Any], bytes], gadget: str
) -> None:
    """Beside a real model and inside it, in old and new files: by a shell, by Python, by Ultralytics' own pip."""
    file = tmp_path / "evil.pt"
    file.write_bytes(place(_gadget(gadget), scratch_model))
    told = refused(home, file, watch)
    assert "not loaded for safety" in told or "not a readable checkpoint" in told


def _gadget(name: str) -> Gadget:
    command = f"touch {MARKER}-{name}"
    return {
        "shell": lambda: Gadget(os.system, command),
        "exec": lambda: Gadget(exec, f"open('{MARKER}-exec', 'w')"),
        "popen": lambda: Gadget(subprocess.Popen, ["touch", f"{MARKER}-popen"]),
        "pip": lambda: _pip("a-package-to-install"),
        "import": lambda: Gadget(__import__, "antigravity"),
    }[name]()


def test_the_same_checkpoint_runs_its_code_where_loading_is_not_restricted(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: in the same sandbox, with pickle's own loader, the marker is there."""
    file = tmp_path / "evil.pt"
    file.write_bytes(_beside(_gadget("shell"), None))
    code = """
        import torch
        def main(request, progress):
            torch.load(request["file"], weights_only=False)
            return {}
    """
    (tmp_path / "unrestricted_child.py").write_text(textwrap.dedent(code))
    original = sandbox._environment
    monkeypatch.setattr(
        sandbox,
        "_environment",
        lambda scratch, *, online: (
            original(scratch, online=online)
            | {"PYTHONPATH": f"{original(scratch, online=online)['PYTHONPATH']}:{tmp_path}"}
        ),
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sandbox.run_sandboxed("unrestricted_child", {"file": str(file)}, scratch)
    assert watch.markers == [f"{MARKER}-shell"]


@pytest.fixture(name="foreign")
def _foreign() -> Iterator[type]:
    """Return the class of a model whose module exists here only, while the file is written."""
    import torch  # noqa: PLC0415 - see _legacy

    module = types.ModuleType("a_package_to_install")
    kind = type("Detector", (torch.nn.Module,), {"__module__": module.__name__})
    module.Detector = kind  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield kind
    del sys.modules[module.__name__]


def test_a_model_of_a_foreign_package_installs_nothing(foreign: type, watch: Watch, home: Path, tmp_path: Path) -> None:
    """Ultralytics, left to itself, installs the package that a checkpoint names."""
    file = tmp_path / "foreign.pt"
    file.write_bytes(_zipped({"model": foreign(), "ema": None, "train_args": {}}))
    assert "not loaded for safety" in refused(home, file, watch)


def test_an_architecture_that_is_text_to_evaluate_evaluates_nothing(
    scratch_model: Any, watch: Watch, tmp_path: Path
) -> None:
    """A checkpoint's yaml may name an activation, which Ultralytics, left to itself, gives to eval."""

    def change(model: Any) -> None:
        model.yaml = {**model.yaml, "activation": f"__import__('os').system('touch {MARKER}-eval')"}

    file = saved(scratch_model, tmp_path / "eval.pt", change=change)
    done = CliRunner().invoke(app, ["register", str(file), "--model", MODEL, "--home", str(tmp_path / "own")])
    assert watch.markers == []
    if done.exit_code == 0:  # the weights are a detector's, and serve without the text
        release = MlflowRegistry(Settings(home=tmp_path / "own").tracking_uri)
        folder = tmp_path / "fetched"
        folder.mkdir()
        release.fetch(MODEL, "1", folder)
        assert MARKER not in (folder / MANIFEST).read_text()
        assert not (folder / "model.yaml").exists()


# Graphs


def _graph(*, location: str | None = None, domain: str = "") -> onnx.ModelProto:
    """Return a graph that calls itself a detector; its weights lie at ``location``, one operator is of ``domain``."""
    weights = numpy_helper.from_array(np.zeros((6, 3, 1, 1), np.float32), "weights")
    if location is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["map"]),
        helper.make_node("Evil" if domain else "Identity", ["map"], ["output0"], domain=domain),
    ]
    shape = [1, 3, 64, 64]
    graph = helper.make_graph(
        nodes,
        "evil",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, 64, 64])],
        [weights],
    )
    imports = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    helper.set_model_props(model, {"task": "detect", "names": "{0: 'a', 1: 'b'}", "stride": "32", "imgsz": "[64, 64]"})
    return model


@pytest.mark.parametrize("location", ["beside.bin", "../above.bin", "absolute"])
def test_a_graph_whose_weights_lie_elsewhere_is_refused(
    watch: Watch, home: Path, tmp_path: Path, location: str
) -> None:
    """Though the file is there and could be read: it could be any file of this machine."""
    folder = tmp_path / "weights"
    folder.mkdir()
    target = (folder / location).resolve() if location != "absolute" else tmp_path / "absolute.bin"
    target.write_bytes(bytes(6 * 3 * 4))
    file = folder / "external.onnx"
    file.write_bytes(_graph(location=str(target) if location == "absolute" else location).SerializeToString())
    assert "keeps weights in other files" in refused(home, file, watch)


def test_a_graph_with_operators_of_its_own_is_refused(watch: Watch, home: Path, tmp_path: Path) -> None:
    """They would need somebody's library."""
    file = tmp_path / "custom.onnx"
    file.write_bytes(_graph(domain="com.evil").SerializeToString())
    assert "custom operators" in refused(home, file, watch)


# Signatures, in what the rollout actor is made of


class Place:
    """A home with a trusted key, a real registry with signed versions 1 and 2 of two models, and the actor's depot."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """Register everything."""
        self.settings = Settings(home=folder / "home", **settings)
        keys = KeyFolder(self.settings.keys_folder)
        keys.new("mine")
        found = keys.signing()
        assert found is not None
        self.key: SigningKey = found[1]
        self.registry = MlflowRegistry(self.settings.tracking_uri)
        self.cache = ReleaseCache(self.settings.cache)
        self.digests: dict[tuple[str, str], str] = {}
        for model in (MODEL, "other"):
            for number in ("1", "2"):
                self.register(folder / f"{model}-{number}", model, f"graph of {model}")

    def register(self, folder: Path, model: str, graph: str, *, signed: bool = True) -> str:
        """Store a small release, the same content under every version of a model; return its version."""
        folder.mkdir()
        (folder / ONNX).write_text(graph)
        manifest = Manifest(
            model=model,
            task="detect",
            names=("a", "b"),
            stride=32,
            imgsz=320,
            head="end2end",
            dynamic=True,
            thresholds=Thresholds(),
            files={ONNX: FileEntry("0" * 64, 0)},
            source=Source("0" * 64, 7, "pt"),
            libraries={},
        )
        (folder / MANIFEST).write_bytes(manifest.to_bytes())
        digest = rewrite_manifest(folder)

        def sign(number: str) -> str:
            return self.key.sign(model, number, digest)

        info = self.registry.create_version(
            model, folder, tags=labels(digest), metrics={}, sign=sign if signed else None
        )
        self.digests[model, info.version] = digest
        return info.version

    def depot(self) -> Depot:
        """Return a depot that knows nothing yet, as after a start."""
        return Depot(
            self.registry,
            self.cache,
            rule=rule_of(self.settings),
            share=dict,
            in_thread=asyncio.to_thread,
            in_registry_thread=asyncio.to_thread,
            faults=FaultPoints(allowed=False),
        )

    async def load(self, model: str, version: str) -> Any:
        """Load a version as the rollout does when the alias names it."""
        info = self.registry.version(model, version)
        depot = self.depot()
        await depot.stock(model, version, info.digest, signature=info.signature)
        return await depot.files(model, version, info.digest)

    async def refusal(self, model: str, version: str) -> str:
        """Return why it is refused; nothing of it may have been cached."""
        with pytest.raises(ReleaseRejectedError) as caught:
            await self.load(model, version)
        assert caught.value.step == "verify"
        assert caught.value.permanent
        return str(caught.value)


@pytest.mark.parametrize("required", [False, True])
async def test_a_signature_serves_for_nothing_but_its_version(tmp_path: Path, required: bool) -> None:  # noqa: FBT001
    """Moved to another version of the same content, to another model, or left on content that took its place."""
    place = Place(tmp_path, require_signed=required)
    assert ONNX in await place.load(MODEL, "1")
    first = place.registry.version(MODEL, "1").signature
    place.registry.sign_version(MODEL, "2", first)
    place.registry.sign_version("other", "1", first)
    assert "does not fit" in await place.refusal(MODEL, "2")
    assert "does not fit" in await place.refusal("other", "1")

    version = place.register(tmp_path / "replaced", MODEL, "graph as signed")
    (artifact,) = [
        path
        for path in (place.settings.root / "registry" / "artifacts").rglob(ONNX)
        if path.read_text() == "graph as signed"
    ]
    artifact.write_text("graph of somebody else")
    evil = rewrite_manifest(artifact.parent)
    client = place.registry._connection.connect()
    client.set_model_version_tag(MODEL, version, DIGEST_TAG, evil)
    assert "does not fit" in await place.refusal(MODEL, version)
    assert not place.cache.has(evil)
    stranger = SigningKey.generate()
    place.registry.sign_version(MODEL, version, stranger.sign(MODEL, version, evil))
    assert f"key {stranger.public.ident}, which is not trusted" in await place.refusal(MODEL, version)
    assert not place.cache.has(evil)


async def test_a_version_without_a_signature_serves_only_where_none_is_demanded(tmp_path: Path) -> None:
    """The same registry, two homes."""
    place = Place(tmp_path)
    version = place.register(tmp_path / "unsigned", MODEL, "graph of nobody", signed=False)
    assert ONNX in await place.load(MODEL, version)
    place.settings = place.settings.model_copy(update={"require_signed": True})
    assert "is not signed, and only signed versions may serve here" in await place.refusal(MODEL, version)


async def test_a_tampered_cache_is_noticed_with_and_without_the_registry(tmp_path: Path) -> None:
    """The signature fits what was signed, and the file's digest does not: it is fetched anew, or nothing loads."""
    place = Place(tmp_path, require_signed=True)
    await place.load(MODEL, "1")
    digest = place.digests[MODEL, "1"]
    cached = place.settings.cache / "releases" / digest / ONNX
    for data in (b"graph of somebody", cached.read_bytes()[:-1], b""):
        cached.write_bytes(data)
        files = await place.load(MODEL, "1")
        assert bytes(files[ONNX]) == b"graph of m"
        assert cached.read_bytes() == b"graph of m"
    cached.write_bytes(b"graph of somebody")
    place.registry = MlflowRegistry("http://127.0.0.1:9")
    with pytest.raises(RegistryError, match="is damaged"):
        await place.depot().stock(MODEL, "1", digest)
    cached.write_bytes(b"graph of m")
    await place.depot().stock(MODEL, "1", digest)
    shutil.rmtree(place.settings.cache / "signatures")
    with pytest.raises(RegistryError):
        await place.depot().stock(MODEL, "1", digest)


@pytest.mark.parametrize("off", ["the switch", "the loader"])
def test_nothing_is_opened_where_restricted_loading_is_not_really_on(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    """Whether its switch was lost or a library no longer heeds it: a harmless file of our own is tried first."""
    file = tmp_path / "evil.pt"
    file.write_bytes(_beside(_gadget("shell"), None))
    code = """
        import torch
        def main(request, progress):
            from pathlib import Path
            from ultralytics.nn import tasks
            if request["off"] == "the loader":
                tasks.torch_safe_load = lambda file: (torch.load(file, weights_only=False), file)
            from models.weights import checkpoint
            checkpoint.load(Path(request["file"]))
    """
    (tmp_path / "careless_child.py").write_text(textwrap.dedent(code))
    original = sandbox._environment

    def environment(scratch: Path, *, online: bool) -> dict[str, str]:
        found = original(scratch, online=online)
        if off == "the switch":
            del found["ULTRALYTICS_SAFE_LOAD"]
        return found | {"PYTHONPATH": f"{found['PYTHONPATH']}:{tmp_path}"}

    monkeypatch.setattr(sandbox, "_environment", environment)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    copied = shutil.copy(file, scratch / "source.pt")
    with pytest.raises(ConversionError, match="Restricted loading is not in force"):
        sandbox.run_sandboxed("careless_child", {"file": str(copied), "off": off}, scratch)
    assert watch.markers == []
