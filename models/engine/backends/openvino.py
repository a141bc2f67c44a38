"""OpenVINO on x86 CPUs: several lanes of one image, bf16 where the CPU has it.

Images of a call run one after the other, never as one tensor: on a CPU lanes beat batches, and so an image's answer
cannot depend on its company, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.engine.backends.backend import Plan
from models.engine.backends.openvino_compile import compile_once
from models.engine.backends.openvino_compiled import CompiledNetworks
from models.engine.backends.openvino_network import Network, UnfitNetworkError, is_memory, runtime
from models.engine.backends.openvino_session import OpenVinoSession, variants_of
from models.engine.priority import loaders_give_way
from models.errors import ReleaseFaultError, ReleaseRejectedError

if TYPE_CHECKING:
    from pathlib import Path

    from models.engine.backends.backend import Beside
    from models.types import Release

ONNX = "model.onnx"
MAX_STREAMS = 16


class OpenVinoBackend:
    """Fulfils Backend."""

    name = "openvino"

    def __init__(self, *, precision: str, threads: int, compiled: Path | None = None) -> None:
        """Start the runtime.

        Args:
            precision: ``auto`` and ``bf16`` compute in bf16 where the CPU has it; ``fp32`` never does.
            threads: CPU threads of all lanes together, >= 1.
            compiled: folder for networks that are compiled once for all processes of this machine; without one every
                process compiles its own.

        """
        self._core = runtime()
        self._compiled = None if compiled is None else CompiledNetworks(compiled)
        self._threads = threads
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if precision != "fp32" and has_bf16 else "f32"

    def plans(self) -> tuple[Plan, ...]:
        """Return one stream a thread, one for every two, and one on all threads; with a lane more than streams each."""
        most = min(self._threads, MAX_STREAMS)
        counts = sorted({most, max(most // 2, 1), 1}, reverse=True)
        confined = self._threads == 1
        return tuple(Plan(each + 1, 1, alone=each > 1, decodes=True, confined=confined) for each in counts)

    def load(self, release: Release, plan: Plan | None = None, beside: Beside | None = None) -> OpenVinoSession:
        """Compile ``release`` for every shape. Raises ReleaseRejectedError or ReleaseFaultError (step ``load``)."""
        plan = plan or self.plans()[0]
        if self._threads == 1:
            # Calls then run on the threads that make them, and the runtime's own only compile.
            loaders_give_way()
        data = release.files.get(ONNX)
        if data is None:
            msg = "the release holds no network; register the model again"
            raise ReleaseRejectedError(msg, step="load")
        stride = release.contract.stride
        network = Network(self._core, data, stride=stride, precision=self.precision, compiled=self._compiled)
        if beside is not None and self._compiled is not None:
            compile_once(network, self._compiled, variants_of(plan, self._threads, beside.ahead), beside.abandoned)
        try:
            return OpenVinoSession(network, plan, threads=self._threads, weights=data.nbytes)
        except UnfitNetworkError as error:
            raise ReleaseRejectedError(str(error), step="load") from error
        except (MemoryError, RuntimeError) as error:
            if is_memory(error):
                msg = "there is no memory to load the network; free some or lower the number of models"
                raise ReleaseFaultError(msg, step="load") from error
            msg = "the network cannot be compiled for this machine; register the model again"
            raise ReleaseRejectedError(msg, step="load") from error
