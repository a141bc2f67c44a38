"""One release's network in OpenVINO, compiled for images of any size or of one, or read as it was compiled before.

Networks of one release answer alike to the last bit, whichever way they came about.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.engine.backends import openvino_graph
from models.engine.backends.openvino_graph import untangle_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from models.engine.backends.backend import Shape
    from models.engine.backends.openvino_compiled import CompiledNetworks

logger = logging.getLogger(__name__)

NHWC = 4
"""Axes of the input: image, row, column, channel."""
SHAPE_DEADLINE_S = 60.0
"""Longest wait until other shapes of the network are compiled, each of which takes half a second."""


@functools.cache
def runtime() -> Any:
    """Return the process's one runtime, which lives as long as the process.

    OpenVINO 2026.4 gives the thread that loads its CPU plugin an alternate signal stack and takes the memory back with
    the runtime, without telling the thread: the next signal then ends the process.
    """
    # Its model converter reports to a telemetry service as soon as it is imported, and nothing here converts.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415 - the runtime takes a second to load, and only the chosen one should

    return openvino.Core()


class UnfitNetworkError(RuntimeError):
    """The network cannot be read, or is none that detects; the message says which."""


class Variant(NamedTuple):
    """What a network is compiled for: one size, None meaning all of them, and so many CPU threads a call (>= 1)."""

    shape: Shape | None
    threads: int


class Network:
    """Reads its bytes when it first has to compile. Safe from any thread; methods block.

    data, stride, precision: as they were given.
    """

    def __init__(
        self,
        core: Any,
        data: NDArray[np.uint8],
        *,
        stride: int,
        precision: str,
        compiled: CompiledNetworks | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            core: the runtime.
            data: the network as ONNX, uint8 (size,).
            stride: divides the sides of every image that will come, >= 1.
            precision: ``bf16`` or ``f32``.
            compiled: where networks may lie that were compiled before.

        """
        self._core = core
        self.data = data
        self.stride = stride
        self.precision = precision
        self._compiled = compiled
        self._reading = threading.Lock()
        self._model: Any = None
        self._shaping = threading.Condition()
        self._shape: Shape | None = None
        self._compiling = 0
        self._known: frozenset[str] = frozenset()

    def request(self, variant: Variant) -> Any:
        """Return a request of the network compiled for ``variant``, read from disk where it lies there.

        Raises UnfitNetworkError, RuntimeError where the runtime refuses, or MemoryError.
        """
        found = self._found(variant)
        if found is not None:
            return found
        model = self._read()
        with contextlib.nullcontext() if variant.shape is None else self._shaped(model, variant.shape):
            return self._core.compile_model(model, "CPU", self._config(variant)).create_infer_request()

    @property
    def was_read(self) -> bool:
        """Return whether a compiled network was read from disk."""
        return bool(self._known)

    def distrust(self) -> bool:
        """Remove from disk what was read from there, and read no more; return whether anything was read."""
        known, self._known = self._known, frozenset()
        if self._compiled is None or not known:
            return False
        self._compiled.distrusted.add(self.digest)
        for key in known:
            self._compiled.discard(key)
        return True

    def forget(self, variant: Variant) -> bool:
        """Remove ``variant`` from disk if it was read from there; return whether it was."""
        key = self.key(variant)
        if self._compiled is None or key not in self._known:
            return False
        self._known -= {key}
        self._compiled.discard(key)
        return True

    def key(self, variant: Variant) -> str:
        """Return 64 hex digits that name all that the compiled network depends on."""
        parts = [_code(), *_machine(self._core), self._config(variant), self.stride, self.digest, variant.shape]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _found(self, variant: Variant) -> Any:
        if self._compiled is None or self.digest in self._compiled.distrusted:
            return None
        key = self.key(variant)
        blob = self._compiled.read(key)
        if blob is None:
            return None
        try:
            request = self._core.import_model(blob, "CPU", self._config(variant)).create_infer_request()
        except RuntimeError as error:
            if is_memory(error):
                raise
            logger.warning("a compiled network is not what the runtime reads, and is compiled again: %s", error)
            self._compiled.discard(key)
            return None
        self._known |= {key}
        return request

    @functools.cached_property
    def digest(self) -> str:
        """Return the digest of its bytes, 64 hex digits."""
        return hashlib.sha256(self.data.data).hexdigest()

    def _read(self) -> Any:
        with self._reading:
            if self._model is None:
                self._model = self._read_anew()
            return self._model

    def _read_anew(self) -> Any:
        try:
            model = self._core.read_model(io.BytesIO(self.data.tobytes()))
        except RuntimeError as error:
            if is_memory(error):
                raise
            msg = "the network cannot be read; register the model again"
            raise UnfitNetworkError(msg) from error
        _check(model)
        try:
            untangle_sizes(model, self.stride)
        except RuntimeError:
            # A network of one size has nothing to untangle; forms are compared with it before they serve anyway.
            logger.debug("the network's sizes stay as they are", exc_info=True)
        return model

    @contextlib.contextmanager
    def _shaped(self, model: Any, shape: Shape) -> Iterator[None]:
        """Give ``model`` that shape; it keeps it for all who compile it in that shape meanwhile.

        Reshaped where it is: to clone it would keep every other thread from Python for some 20 ms, and to free the
        clone for another 10. Raises RuntimeError.
        """
        with self._shaping:
            if not self._shaping.wait_for(lambda: self._compiling == 0 or self._shape == shape, SHAPE_DEADLINE_S):
                msg = "another shape of the network is being compiled for too long"
                raise RuntimeError(msg)
            if self._shape != shape:
                self._shape = None
                model.reshape([1, *shape, 3])
                self._shape = shape
            self._compiling += 1
        try:
            yield
        finally:
            with self._shaping:
                self._compiling -= 1
                self._shaping.notify_all()

    def _config(self, variant: Variant) -> dict[str, Any]:
        return {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": variant.threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            # Neither replicas nor forms know of each other: pinned, they would all sit on the first cores.
            "ENABLE_CPU_PINNING": False,
        }


def is_memory(error: Exception) -> bool:
    """Return whether memory ran out, which OpenVINO may wrap into an error that only its text tells."""
    return isinstance(error, MemoryError) or "bad_alloc" in str(error)


@functools.cache
def _code() -> str:
    """Return a digest of our code that shapes a compiled network: an update must not read what another made."""
    digest = hashlib.sha256()
    for source in (Path(openvino_graph.__file__), Path(__file__)):
        with contextlib.suppress(OSError):  # an installation without sources is told apart by its runtime only
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _machine(core: Any) -> list[Any]:
    """Return what of the machine and the runtime a compiled network depends on."""
    version = core.get_versions("CPU")["CPU"]
    names = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    return [version.build_number, *(core.get_property("CPU", name) for name in names)]


def _check(model: Any) -> None:
    import openvino  # noqa: PLC0415 - see runtime

    inputs, outputs = model.inputs, model.outputs
    uint8 = openvino.Type.u8
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].element_type != uint8 or inputs[0].partial_shape.rank != NHWC:
        msg = "the network does not take uint8 images (n, h, w, 3) or has not one output; register the model again"
        raise UnfitNetworkError(msg)
