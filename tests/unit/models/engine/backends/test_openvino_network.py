"""A release's network: one key for all that it depends on, and the same answers whether compiled or read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.engine.backends import openvino_network as module
from models.engine.backends.openvino_compile import compile_into
from models.engine.backends.openvino_compiled import CompiledNetworks
from models.engine.backends.openvino_network import Network, UnfitNetworkError, Variant, runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("openvino")

SHAPE = (64, 96)
IMAGE = np.random.default_rng(0).integers(0, 256, (1, *SHAPE, 3), np.uint8)
VARIANTS = (Variant(None, 1), Variant(SHAPE, 1))


class OnlyReads:
    """The runtime of a machine that must not compile."""

    def __getattr__(self, name: str) -> Any:
        assert name not in {"read_model", "compile_model"}, "it compiled"
        return getattr(runtime(), name)


def answer(compiled: Any) -> np.ndarray:
    """Return what a request of a compiled network says of IMAGE."""
    return np.array(next(iter(compiled.infer([IMAGE]).values())))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_read_from_disk_answers_to_the_last_bit(
    tmp_path: Path, tiny_network: Callable[..., np.ndarray], variant: Variant, precision: str
) -> None:
    """As the one that was compiled, and nothing is compiled for it."""
    how = {"stride": 32, "precision": precision, "compiled": CompiledNetworks(tmp_path)}
    here = Network(runtime(), tiny_network(bias=0.3), **how)
    compiled = here.request(variant)
    exported = compiled.get_compiled_model().export_model().getvalue()
    assert how["compiled"].write(here.key(variant), exported)
    read = Network(OnlyReads(), tiny_network(bias=0.3), **how).request(variant)
    assert np.array_equal(answer(read), answer(compiled))


def test_the_key_names_all_that_a_compiled_network_depends_on(
    tiny_network: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes, stride, precision, shape, threads, processor, runtime and our own format; and nothing that varies else."""
    data = tiny_network()

    def key(
        data: np.ndarray = data,
        variant: Variant = VARIANTS[1],
        *,
        name: str = "Xeon",
        build: str = "1",
        can: tuple[str, ...] = ("BF16",),
        **how: Any,
    ) -> str:
        machine = {"FULL_DEVICE_NAME": name, "OPTIMIZATION_CAPABILITIES": list(can)}
        core = SimpleNamespace(
            get_versions=lambda _: {"CPU": SimpleNamespace(build_number=build)},
            get_property=lambda _, which: machine[which],
        )
        return Network(core, data, **({"stride": 32, "precision": "f32"} | how)).key(variant)

    first = key()
    assert len(first) == 64
    assert key(tiny_network()) == first
    others = [
        key(tiny_network(bias=1.0)),
        key(variant=VARIANTS[0]),
        key(variant=Variant(SHAPE, 2)),
        key(variant=Variant(SHAPE[::-1], 1)),
        key(stride=64),
        key(precision="bf16"),
        key(name="EPYC"),
        key(build="2"),
        key(can=()),
    ]
    config = Network._config
    monkeypatch.setattr(Network, "_config", lambda network, variant: config(network, variant) | {"NUM_STREAMS": 2})
    others.append(key())
    monkeypatch.setattr(module, "_code", lambda: "another version of ours")
    assert len({first, *others, key()}) == len(others) + 2


def test_code_that_shapes_a_network_is_in_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An update of the service reads nothing that the former one has compiled."""
    before = module._code.__wrapped__()
    changed = tmp_path / "openvino_graph.py"
    changed.write_text("# untangles otherwise")
    monkeypatch.setattr(module.openvino_graph, "__file__", str(changed))
    assert module._code.__wrapped__() != before


def test_what_was_read_can_be_distrusted(tmp_path: Path, tiny_network: Callable[..., np.ndarray]) -> None:
    """It is removed, and only that, and this process reads no more of it; what it has compiled itself is trusted."""
    compiled = CompiledNetworks(tmp_path)
    how = {"stride": 32, "precision": "f32"}
    assert compile_into(compiled, runtime(), tiny_network(), VARIANTS, **how)
    network = Network(runtime(), tiny_network(), compiled=compiled, **how)
    assert not network.distrust()
    network.request(VARIANTS[1])
    network.request(Variant(SHAPE[::-1], 1))
    assert network.distrust()
    assert not network.distrust()
    assert compile_into(CompiledNetworks(tmp_path), runtime(), tiny_network(), VARIANTS[1:], **how)
    again = Network(runtime(), tiny_network(), compiled=compiled, **how)
    again.request(VARIANTS[1])
    assert not again.was_read, "another process has written it again, and it was read"
    compiled.discard(network.key(VARIANTS[1]))
    assert [compiled.has(network.key(variant)) for variant in VARIANTS] == [True, False]
    assert not Network(runtime(), tiny_network(), **how).distrust()


def test_a_lack_of_memory_damages_no_file(tmp_path: Path, tiny_network: Callable[..., np.ndarray]) -> None:
    """It passes; the file is as good as before."""

    class Exhausted(OnlyReads):
        def import_model(self, *_: object) -> None:
            msg = "std::bad_alloc"
            raise RuntimeError(msg)

    compiled = CompiledNetworks(tmp_path)
    assert compile_into(compiled, runtime(), tiny_network(), VARIANTS[:1], stride=32, precision="f32")
    network = Network(Exhausted(), tiny_network(), stride=32, precision="f32", compiled=compiled)
    with pytest.raises(RuntimeError, match="bad_alloc"):
        network.request(VARIANTS[0])
    assert compiled.has(network.key(VARIANTS[0]))


def test_what_the_runtime_refuses_to_read_is_compiled(
    tmp_path: Path, tiny_network: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    """Whole as it is, it is removed, so that nobody tries it again."""
    compiled = CompiledNetworks(tmp_path)
    network = Network(runtime(), tiny_network(bias=0.3), stride=32, precision="f32", compiled=compiled)
    assert compiled.write(network.key(VARIANTS[1]), b"not what the runtime writes")
    plain = Network(runtime(), tiny_network(bias=0.3), stride=32, precision="f32")
    assert np.array_equal(answer(network.request(VARIANTS[1])), answer(plain.request(VARIANTS[1])))
    assert "is compiled again" in caplog.text
    assert not compiled.has(network.key(VARIANTS[1]))


def test_sizes_are_untangled_before_anything_is_compiled(
    tiny_network: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stride that the release promises, once, on the network that is then compiled."""
    seen: list[object] = []
    monkeypatch.setattr(module, "untangle_sizes", lambda *given: seen.append(given))
    network = Network(runtime(), tiny_network(), stride=64, precision="f32")
    for variant in VARIANTS:
        network.request(variant)
    assert seen == [(network._model, 64)]


@pytest.mark.parametrize(("kind", "said"), [(1, "does not take uint8"), (None, "cannot be read")])
def test_a_network_that_is_none_is_named(tiny_network: Callable[..., np.ndarray], kind: int | None, said: str) -> None:
    """Another input, or bytes that are no network."""
    data = np.frombuffer(b"no network", np.uint8) if kind is None else tiny_network(kind=kind)
    with pytest.raises(UnfitNetworkError, match=said):
        Network(runtime(), data, stride=32, precision="f32").request(VARIANTS[0])
