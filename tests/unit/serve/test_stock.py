"""What the registry holds before a service starts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_files import release_files

from models import demo
from models.errors import ConversionError, RegistryError, UnknownModelError
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.fake_registry import FakeRegistry
from models.weights.manifest import ONNX
from models.weights.register import Registration, promote
from models.weights.registry import PROMOTABLE_TAG, SOURCE_TAG, Registry
from serve import stock as module
from serve.stock import check_sources, stock


@pytest.fixture(autouse=True)
def _conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let registration store the file's name instead of converting it: the real one takes seconds in a sandbox."""

    def register(registry: Registry, source: str | Path, *, model: str, **_: Any) -> Registration:
        name = Path(source).name
        try:
            known = [info for info in registry.versions(model) if info.source_sha256 == name]
        except UnknownModelError:
            known = []
        if known:
            return Registration(known[0], created=False)
        folder = tmp_path / "release"
        folder.mkdir(exist_ok=True)
        tags = {SOURCE_TAG: name, PROMOTABLE_TAG: "true"}
        return Registration(registry.create_version(model, folder, tags=tags, metrics={}), created=True)

    monkeypatch.setattr(module, "register", register)
    monkeypatch.setattr(demo, "metrics", lambda _: {"map50_95": 0.6, "map50": 0.9})
    weights = tmp_path / "weights"
    weights.mkdir()
    for number in module.DEMO_VERSIONS:
        (weights / f"checkout-{number}.pt").touch()
    monkeypatch.setattr(demo, "weights_path", lambda number: weights / f"checkout-{number}.pt")


def fill(registry: Registry, sources: dict[str, str | None], home: Path = Path("nowhere")) -> list[str]:
    """Stock ``registry`` and return the lines for people; ``home`` holds what was served last."""
    lines: list[str] = []
    stock(
        registry,
        sources,
        committed=CommittedStore(home),
        cache=ReleaseCache(home / "cache"),
        say=lines.append,
        progress=lambda _stage, _done: None,
    )
    return lines


def desired(registry: Registry, model: str) -> str | None:
    """Return the version that the production alias names."""
    found = registry.desired(model)
    return found.version if found else None


def test_the_first_start_registers_both_demo_versions_and_wants_the_better_one() -> None:
    """Version 1 stays there to be promoted by hand."""
    registry = FakeRegistry()
    fill(registry, {"checkout": None})
    assert [info.version for info in registry.versions("checkout")] == ["1", "2"]
    assert desired(registry, "checkout") == "2"


def test_a_later_start_leaves_the_operators_choice_alone() -> None:
    """Whoever went back to version 1 finds it serving after a restart."""
    registry = FakeRegistry()
    fill(registry, {"checkout": None})
    promote(registry, "checkout", "1")
    assert fill(registry, {"checkout": None}) == []
    assert desired(registry, "checkout") == "1"


def test_a_demo_registered_halfway_is_completed() -> None:
    """A start that was interrupted between the two versions ends like one that was not."""
    registry = FakeRegistry()
    module._stock_demo(registry, print, lambda _stage, _done: None, None)
    once = [info.version for info in registry.versions("checkout")]
    module._stock_demo(registry, print, lambda _stage, _done: None, None)
    assert [info.version for info in registry.versions("checkout")] == once


def test_the_same_file_again_registers_and_promotes_nothing() -> None:
    """A fresh promotion would lift a rejection that nobody meant to lift."""
    registry = FakeRegistry()
    fill(registry, {"tray": "tray.pt"})
    before = registry.desired("tray")
    assert fill(registry, {"tray": "tray.pt"})[-1] == "tray version 1 is that file already"
    assert registry.desired("tray") == before


def test_another_file_is_registered_promoted_and_served() -> None:
    """The file that was named last is the one that serves."""
    registry = FakeRegistry()
    fill(registry, {"tray": "first.pt"})
    fill(registry, {"tray": "second.pt"})
    assert desired(registry, "tray") == "2"
    fill(registry, {"tray": "first.pt"})
    assert desired(registry, "tray") == "1"


def test_a_model_that_nobody_registered_is_refused_with_what_to_do() -> None:
    """One line names both ways out."""
    with pytest.raises(UnknownModelError, match=r"no production version of street: .*steelyard register FILE"):
        fill(FakeRegistry(), {"street": None})


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """Return a home in which a version of street was committed and lies in the cache."""
    home = tmp_path / "home"
    digest, files = release_files(2, "street")
    CommittedStore(home).save(Committed("street", 3, "2", digest))
    ReleaseCache(home / "cache").put(digest, {name: np.frombuffer(data, np.uint8) for name, data in files.items()})
    return home


def test_what_was_committed_last_serves_while_the_registry_is_down(served: Path) -> None:
    """A restart needs no registry where this machine holds what it served before."""
    registry = FakeRegistry()
    registry.down = True
    assert fill(registry, {"street": None}, served) == []


def test_a_damaged_copy_and_no_registry_is_a_named_cause(served: Path) -> None:
    """Every start says what is damaged, what was expected and what to do: it does not become a mere lack."""
    (graph,) = (served / "cache").rglob(ONNX)
    graph.write_bytes(b"grape 2")
    registry = FakeRegistry()
    registry.down = True
    for _ in range(2):
        with pytest.raises(RegistryError) as told:
            fill(registry, {"street": None}, served)
        digest, _files = release_files(2, "street")
        for words in ("version 2 of street", digest[:12], ONNX, "digest differs", "cannot be reached", "from a backup"):
            assert words in str(told.value)


def test_a_damaged_copy_is_left_to_the_rollout_where_the_registry_answers(served: Path, tmp_path: Path) -> None:
    """It fetches the release anew; the start goes on."""
    (graph,) = (served / "cache").rglob(ONNX)
    graph.write_bytes(b"grape 2")
    registry = FakeRegistry()
    (tmp_path / "empty").mkdir()
    registry.create_version("street", tmp_path / "empty", tags={PROMOTABLE_TAG: "true"}, metrics={})
    promote(registry, "street", "1")
    assert fill(registry, {"street": None}, served) == []


@pytest.mark.parametrize("lost", ["record", "release"])
def test_without_record_or_release_an_unreachable_registry_ends_the_start(served: Path, lost: str) -> None:
    """Nothing here could serve, so the registry's own error comes out."""
    if lost == "record":
        (served / "committed" / "street.json").unlink()
    else:
        ReleaseCache(served / "cache").drop(release_files(2, "street")[0])
    registry = FakeRegistry()
    registry.down = True
    with pytest.raises(RegistryError):
        fill(registry, {"street": None}, served)


def test_a_file_cannot_be_registered_while_the_registry_is_down(served: Path) -> None:
    """Whoever names a file wants that file, not what served before."""
    registry = FakeRegistry()
    registry.down = True
    with pytest.raises(RegistryError):
        fill(registry, {"street": "street.pt"}, served)


@pytest.mark.parametrize("missing", ["weights", "metrics"])
def test_a_demo_that_is_not_installed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """An image without the demo weights says which way to go instead of showing a traceback."""

    def absent(_: int) -> dict[str, float]:
        raise FileNotFoundError

    if missing == "weights":
        monkeypatch.setattr(demo, "weights_path", lambda _: Path("nowhere") / "checkout.pt")
    else:
        monkeypatch.setattr(demo, "metrics", absent)
    registry = FakeRegistry()
    with pytest.raises(UnknownModelError, match=r"not installed here: name a model with --model NAME=FILE"):
        fill(registry, {"checkout": None})
    assert registry.models() == []


def _missing(folder: Path) -> str:
    return str(folder / "missing.pt")


def _folder(folder: Path) -> str:
    return str(folder)


def _unreadable(folder: Path) -> str:
    path = folder / "secret.pt"
    path.touch(mode=0o000)
    return str(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "there is no weights file"),
        (_folder, "is a folder"),
        pytest.param(
            _unreadable,
            "cannot be read",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file"),
        ),
    ],
)
def test_weights_that_cannot_be_read_are_refused_before_anything_starts(
    tmp_path: Path, make: Callable[[Path], str], words: str
) -> None:
    """Each kind of mistake gets its own line."""
    with pytest.raises(ConversionError, match=words):
        check_sources({"tray": make(tmp_path)})


def test_official_names_and_registered_models_pass() -> None:
    """A bare name may be fetched; no file at all means what the registry holds."""
    check_sources({"yolo26n": "yolo26n.pt", "checkout": None})
