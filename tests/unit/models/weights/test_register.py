"""register and promote: what they ask of the registry, with the conversion stood in for by its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from models.errors import ConversionError, RegistryError, ReleaseRejectedError, UnknownModelError, UnknownVersionError
from models.rollout.order import PLAIN, Order
from models.weights import register as module
from models.weights.fake_registry import FakeRegistry
from models.weights.manifest import MANIFEST, Manifest, Source
from models.weights.register import promote, register, sign
from models.weights.release import file_sha256
from models.weights.signing import SigningKey, parse_signature

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, make_manifest: Callable[..., Manifest]) -> list[dict[str, Any]]:
    """Replace the conversion by one that writes a sound release; returns what it was asked for.

    Weights whose text holds "blind" get no golden image.
    """
    asked: list[dict[str, Any]] = []

    def convert(source: Path, destination: Path, **options: Any) -> Manifest:
        asked.append(options)
        origin = Source(file_sha256(source), source.stat().st_size, "pt")
        files = {"model.onnx": source.read_bytes()}
        golden: tuple[Any, ...] = ()
        if b"blind" not in source.read_bytes():
            files["golden/0-bus.jpg"] = b"picture"
            golden = make_manifest().golden
        manifest = make_manifest(
            files, model=options["model"], source=origin, golden=golden, metrics=dict(options["metrics"] or {})
        )
        for name, data in {**files, MANIFEST: manifest.to_bytes()}.items():
            (destination / name).parent.mkdir(exist_ok=True)
            (destination / name).write_bytes(data)
        if options["progress"] is not None:
            options["progress"]("golden", 1.0)
        return manifest

    monkeypatch.setattr(module, "convert", convert)
    return asked


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return the path of a weights file."""
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    return path


def test_a_file_becomes_a_ready_version(conversions: list[dict[str, Any]], weights: Path) -> None:
    """Files, digest, source and metrics reach the registry."""
    registry = FakeRegistry()
    seen: list[tuple[str, float]] = []
    found = register(
        registry, weights, model="m", metrics={"mAP": 0.5}, progress=lambda stage, done: seen.append((stage, done))
    )
    assert found.created
    assert (found.info.version, found.info.state, found.info.promotable) == ("1", "ready", "true")
    assert found.info.source_sha256 == file_sha256(weights)
    manifest = Manifest.from_bytes(registry.files["m", "1"][MANIFEST])
    assert found.info.digest == manifest.digest
    assert found.info.metrics == manifest.metrics == {"mAP": 0.5}
    assert seen == [("golden", 0.95), ("store", 0.95), ("store", 1.0)]
    assert len(conversions) == 1


def test_the_same_bytes_again_make_nothing_new(conversions: list[dict[str, Any]], weights: Path) -> None:
    """Whatever the file is called; another model name is another model."""
    registry = FakeRegistry()
    register(registry, weights, model="m")
    other = weights.with_name("copy.pt")
    other.write_bytes(weights.read_bytes())
    again = register(registry, other, model="m")
    assert (again.created, again.info.version) == (False, "1")
    assert register(registry, weights, model="n").created
    assert len(conversions) == 2


def test_an_unfinished_version_is_not_taken_for_registered(conversions: list[dict[str, Any]], weights: Path) -> None:
    """A registration that crashed before its ready tag is done again."""
    registry = FakeRegistry()
    register(registry, weights, model="m")
    registry.set_state("m", "1", "")
    assert register(registry, weights, model="m").info.version == "2"
    assert len(conversions) == 2


@pytest.mark.usefixtures("conversions")
def test_blind_weights_can_be_registered_but_not_promoted(tmp_path: Path) -> None:
    """The tag says why, and promote says it again; with pictures given they may try once more."""
    registry = FakeRegistry()
    path = tmp_path / "zero.pt"
    path.write_bytes(b"blind")
    found = register(registry, path, model="m")
    assert "no box with a score of 0.5" in found.info.promotable
    with pytest.raises(ReleaseRejectedError, match="no box with a score") as caught:
        promote(registry, "m", "1")
    assert caught.value.step == "promote"
    assert registry.desired("m") is None
    assert not register(registry, path, model="m").created
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.jpg").write_bytes(b"x")
    assert register(registry, path, model="m", golden=pictures).created


@pytest.mark.usefixtures("conversions")
def test_promote_demands_a_ready_version(weights: Path) -> None:
    """A missing ready tag, an unknown version and an unknown model each have their error."""
    registry = FakeRegistry()
    register(registry, weights, model="m")
    with pytest.raises(UnknownVersionError):
        promote(registry, "m", "9")
    with pytest.raises(UnknownModelError):
        promote(registry, "n", "1")
    registry.set_state("m", "1", "")
    with pytest.raises(ReleaseRejectedError, match="not ready") as caught:
        promote(registry, "m", "1")
    assert caught.value.step == "promote"


@pytest.mark.usefixtures("conversions")
def test_every_promote_has_an_id_of_its_own(weights: Path) -> None:
    """Promoting a version again is a new wish: it lifts a rejection."""
    registry = FakeRegistry()
    register(registry, weights, model="m")
    first, second = promote(registry, "m", "1"), promote(registry, "m", "1")
    assert first.version == second.version == "1"
    assert first.promotion != second.promotion
    assert registry.desired("m") == second


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.pt", "does not exist"),
        ("folder.pt", "is a folder"),
        ("readme.md", "neither a .pt"),
        ("bare", "neither"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    """Nothing is converted and nothing registered."""
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(ConversionError, match=words):
        register(FakeRegistry(), tmp_path / name, model="m")


def test_an_empty_file_is_one_sentence(tmp_path: Path) -> None:
    """Refused before a child is started."""
    path = tmp_path / "empty.pt"
    path.touch()
    with pytest.raises(ConversionError, match="is empty"):
        register(FakeRegistry(), path, model="m")


@pytest.mark.parametrize("model", ["", "a/b", "ü", "x" * 65, "-x"])
def test_a_name_that_cannot_name_a_model_is_refused(weights: Path, model: str) -> None:
    """Names end up in URLs and file names."""
    with pytest.raises(ConversionError, match="cannot name a model"):
        register(FakeRegistry(), weights, model=model)


def test_an_unreachable_registry_is_asked_before_the_conversion(
    conversions: list[dict[str, Any]], weights: Path
) -> None:
    """Nobody waits for a conversion that cannot be stored."""
    registry = FakeRegistry()
    registry.down = True
    with pytest.raises(RegistryError):
        register(registry, weights, model="m")
    assert conversions == []


def test_an_official_name_is_fetched_in_a_child(
    conversions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child has the network and only names the file; the conversion has none."""
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, dict[str, Any], bool]] = []

    def run(name: str, request: dict[str, Any], scratch: Path, **options: Any) -> dict[str, Any]:
        asked.append((name, request, options["online"]))
        (scratch / "yolo26n.pt").write_bytes(b"official")
        return {"file": "../../yolo26n.pt"}

    monkeypatch.setattr(module.sandbox, "run_sandboxed", run)
    assert register(FakeRegistry(), "yolo26n.pt", model="yolo26n").created
    assert asked == [("models.weights.download", {"name": "yolo26n.pt"}, True)]
    assert len(conversions) == 1
    with pytest.raises(ConversionError, match="does not exist"):
        register(FakeRegistry(), tmp_path / "yolo26n.pt", model="m")
    assert len(asked) == 1


@pytest.mark.usefixtures("conversions")
def test_a_promotion_carries_its_order_and_reason(weights: Path) -> None:
    """Whatever waives a gate is stored with the promotion that asked for it."""
    registry = FakeRegistry()
    register(registry, weights, model="m")
    order = Order(force="hot fix")
    assert promote(registry, "m", "1", reason="hot fix", order=order).order == order
    assert promote(registry, "m", "1").order == PLAIN


def test_a_registered_version_is_signed_under_its_own_number(conversions: list[dict[str, Any]], weights: Path) -> None:
    """With a key; without one it is not. The same file again makes no new version and no new signature."""
    registry, key = FakeRegistry(), SigningKey.generate()
    register(registry, weights, model="m")
    weights.write_bytes(b"better")
    info = register(registry, weights, model="m", key=key).info
    assert (registry.version("m", "1").signature, info.version) == ("", "2")
    assert key.public.verifies(parse_signature(info.signature), "m", "2", info.digest)
    again = register(registry, weights, model="m", key=SigningKey.generate())
    assert (again.created, again.info.signature) == (False, info.signature)
    assert len(conversions) == 2


def test_an_old_version_is_signed_once_its_files_are_verified(conversions: list[dict[str, Any]], weights: Path) -> None:
    """A changed file, or a manifest that is not the registered one, is never vouched for."""
    registry, key = FakeRegistry(), SigningKey.generate()
    register(registry, weights, model="m")
    info = sign(registry, "m", "1", key)
    assert key.public.verifies(parse_signature(info.signature), "m", "1", info.digest)
    assert sign(registry, "m", "1", key).signature == info.signature
    sound = dict(registry.files["m", "1"])
    for name in ("model.onnx", MANIFEST):
        registry.files["m", "1"] = sound | {name: sound[name] + b" "}
        registry.sign_version("m", "1", "")
        with pytest.raises(ReleaseRejectedError) as caught:
            sign(registry, "m", "1", key)
        assert caught.value.step == "verify"
        assert registry.version("m", "1").signature == ""
    registry.set_state("m", "1", "")
    with pytest.raises(ReleaseRejectedError, match="not ready"):
        sign(registry, "m", "1", key)
    with pytest.raises(UnknownVersionError):
        sign(registry, "m", "9", key)
    assert len(conversions) == 1
