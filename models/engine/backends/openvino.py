"""OpenVINO on x86 CPUs: several lanes of one image, bf16 where the CPU has it.

Images of a call run one after the other, never as one tensor: on a CPU lanes beat batches, and so an image's answer
cannot depend on its company, to the last bit.
"""

from __future__ import annotations

import functools
import io
import logging
import sys
from typing import TYPE_CHECKING, Any

from models.engine.backends.backend import Plan
from models.engine.backends.openvino_graph import untangle_sizes
from models.engine.backends.openvino_session import OpenVinoSession
from models.engine.priority import loaders_give_way
from models.errors import ReleaseFaultError, ReleaseRejectedError

if TYPE_CHECKING:
    from models.types import Release

logger = logging.getLogger(__name__)

ONNX = "model.onnx"
NHWC = 4
"""Axes of the input: image, row, column, channel."""
MAX_STREAMS = 16


@functools.cache
def _core() -> Any:
    """Return the process's one runtime, which lives as long as the process.

    OpenVINO 2026.4 gives the thread that loads its CPU plugin an alternate signal stack and takes the memory back with
    the runtime, without telling the thread: the next signal then ends the process.
    """
    # Its model converter reports to a telemetry service as soon as it is imported, and nothing here converts.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino  # noqa: PLC0415 - the runtime takes a second to load, and only the chosen one should

    return openvino.Core()


class OpenVinoBackend:
    """Fulfils Backend."""

    name = "openvino"

    def __init__(self, *, precision: str, threads: int) -> None:
        """Start the runtime.

        Args:
            precision: ``auto`` and ``bf16`` compute in bf16 where the CPU has it; ``fp32`` never does.
            threads: CPU threads of all lanes together, >= 1.

        """
        self._core = _core()
        self._threads = threads
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "f32"

    def plans(self) -> tuple[Plan, ...]:
        """Return one stream a thread, one for every two, and one on all threads; with a lane more than streams each."""
        most = min(self._threads, MAX_STREAMS)
        counts = sorted({most, max(most // 2, 1), 1}, reverse=True)
        confined = self._threads == 1
        return tuple(Plan(each + 1, 1, alone=each > 1, decodes=True, confined=confined) for each in counts)

    def load(self, release: Release, plan: Plan | None = None) -> OpenVinoSession:
        """Compile ``release`` for every shape. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        if self._threads == 1:
            # Calls then run on the threads that make them, and the runtime's own only compile.
            loaders_give_way()
        data = release.files.get(ONNX)
        if data is None:
            msg = "the release holds no network; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        try:
            model = self._core.read_model(io.BytesIO(data.tobytes()))
        except (MemoryError, RuntimeError) as error:
            _raise_if_memory(error)
            msg = "the network cannot be read; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error
        self._check(model)
        try:
            untangle_sizes(model, release.contract.stride)
        except RuntimeError:
            # A network of one size has nothing to untangle; forms are compared with it before they serve anyway.
            logger.debug("the network's sizes stay as they are", exc_info=True)
        try:
            return OpenVinoSession(self._core, model, self.precision, plan, threads=self._threads, weights=data.nbytes)
        except (MemoryError, RuntimeError) as error:
            _raise_if_memory(error)
            msg = "the network cannot be compiled for this machine; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error

    def _check(self, model: Any) -> None:
        import openvino  # noqa: PLC0415 - see _core

        inputs, outputs = model.inputs, model.outputs
        uint8 = openvino.Type.u8
        if (
            len(inputs) != 1
            or len(outputs) != 1
            or inputs[0].element_type != uint8
            or inputs[0].partial_shape.rank != NHWC
        ):
            msg = "the network does not take uint8 images (n, h, w, 3) or has not one output; register the model again"
            raise ReleaseRejectedError(msg, step="load")


def _raise_if_memory(error: Exception) -> None:
    """Raise ReleaseFaultError where memory ran out, which OpenVINO may wrap into an error that only its text tells."""
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):
        msg = "there is no memory to load the network; free some or lower the number of models"
        raise ReleaseFaultError(msg, step="load") from error
