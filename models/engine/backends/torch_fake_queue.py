"""A queue without a GPU: everything happens at once, on the CPU. It lets the GPU's lanes run where there is none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.engine.backends.torch_queue import WARM_RUNS, Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class FakeQueue:
    """Fulfils Queue. ``replays`` counts the replays of its recordings; a recording fills the same memory each time."""

    handle = 0

    def __init__(self) -> None:
        """Run on the CPU."""
        import torch  # noqa: PLC0415 - a service loads only the runtime it uses

        self._torch: Any = torch
        self.device = torch.device("cpu")
        self.replays = 0

    def host(self, size: int, dtype: Any) -> Any:
        """Return ordinary memory."""
        return self._torch.empty(size, dtype=dtype)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Switch gradients off."""
        with self._torch.inference_mode():
            yield

    def finish(self) -> None:
        """Do nothing: all is done already."""

    def record(self, run: Callable[[], Any]) -> Recording:
        """Keep ``run`` and the memory of its last output."""
        with self._torch.inference_mode():
            for _ in range(WARM_RUNS):
                output = run()

        def replay() -> None:
            self.replays += 1
            with self._torch.inference_mode():
                output.copy_(run())

        return Recording(replay, output)
