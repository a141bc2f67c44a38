"""Whether there is a GPU and how much of it a replica may fill; the queue itself runs in ``test_backend.py`` on one."""

from __future__ import annotations

import pytest

from models.engine.backends.torch_fake_queue import FakeQueue
from models.engine.backends.torch_queue import memory_fraction, require_gpu
from models.errors import SettingsError

torch = pytest.importorskip("torch")


def test_a_build_without_cuda_and_a_machine_without_a_gpu_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one is mended by installing, the other by the driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SettingsError, match="install torch"):
        require_gpu(1.0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(SettingsError, match="nvidia-smi"):
        require_gpu(1.0)


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    """Four replicas on one GPU keep to a quarter each; two GPUs do not give one of them twice its memory."""
    assert memory_fraction(0.25) * 4 == memory_fraction(1.0) == memory_fraction(2.0) < 1


def test_the_fakes_recordings_repeat_on_the_same_memory() -> None:
    """As a CUDA graph does: it reads what lies there now, and fills the output that it had."""
    queue = FakeQueue()
    source = torch.zeros(3)
    recording = queue.record(lambda: source + 1)
    output = recording.output
    source.fill_(4)
    assert output.tolist() == [1, 1, 1]
    recording.replay()
    assert (recording.output.tolist(), recording.output is output, queue.replays) == ([5, 5, 5], True, 1)
