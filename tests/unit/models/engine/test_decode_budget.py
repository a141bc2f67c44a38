"""The budget of images that decode at once, on real threads that never sleep."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from models.engine.batch import Lane
from models.engine.decode import DecodeLimits
from models.engine.decode_budget import DecodeBudget
from models.engine.detect import Detecting, Encoded
from models.errors import DeadlineExceededError, InvalidImageError
from models.types import Contract, DetectOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

FAR = 1e9
PATIENCE_S = 20.0


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = _picture()
CONTRACT = Contract("detect", ("dog",), stride=32, imgsz=64, head="raw")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Return threads of lanes."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Holder:
    """Holds bytes on a thread of its own until told to let go."""

    def __init__(self, budget: DecodeBudget, size: int, threads: ThreadPoolExecutor, order: list[int]) -> None:
        """Begin to hold ``size`` bytes; ``order`` gets the size once it does."""
        self.has, self.let_go = threading.Event(), threading.Event()
        self._budget, self._size, self._order = budget, size, order
        self.done = threads.submit(self._run)

    def _run(self) -> None:
        with self._budget.hold(self._size, FAR):
            self._order.append(self._size)
            self.has.set()
            assert self.let_go.wait(PATIENCE_S)

    def end(self) -> None:
        """Let go and wait until the budget knows."""
        self.let_go.set()
        self.done.result(PATIENCE_S)


def wait_until_waiting(budget: DecodeBudget, count: int) -> None:
    """Return once ``count`` threads wait."""
    for _ in range(200_000):
        if budget.waiting == count:
            return
        threading.Event().wait(0.0001)
    pytest.fail(f"{budget.waiting} wait")


def test_images_below_the_budget_do_not_meet(threads: ThreadPoolExecutor) -> None:
    """As many go at once as fit, and afterwards nothing is held."""
    budget = DecodeBudget(100)
    holders = [Holder(budget, 25, threads, []) for _ in range(4)]
    assert all(each.has.wait(PATIENCE_S) for each in holders)
    assert (budget.used, budget.waiting) == (100, 0)
    for each in holders:
        each.end()
    assert budget.used == 0


def test_what_does_not_fit_waits_in_order_of_arrival(threads: ThreadPoolExecutor) -> None:
    """A large image is not passed for ever by small ones that would still fit."""
    budget, order = DecodeBudget(100), list[int]()
    first = Holder(budget, 60, threads, order)
    assert first.has.wait(PATIENCE_S)
    large = Holder(budget, 90, threads, order)
    wait_until_waiting(budget, 1)
    small = Holder(budget, 5, threads, order)
    wait_until_waiting(budget, 2)
    assert not small.has.is_set()
    first.end()
    assert large.has.wait(PATIENCE_S)
    assert small.has.wait(PATIENCE_S)
    large.end()
    small.end()
    assert order == [60, 90, 5]
    assert budget.used == 0


def test_an_image_larger_than_the_budget_goes_alone(threads: ThreadPoolExecutor) -> None:
    """It waits for everybody, and everybody for it."""
    budget, order = DecodeBudget(100), list[int]()
    first = Holder(budget, 1, threads, order)
    assert first.has.wait(PATIENCE_S)
    huge = Holder(budget, 1000, threads, order)
    wait_until_waiting(budget, 1)
    first.end()
    assert huge.has.wait(PATIENCE_S)
    last = Holder(budget, 1, threads, order)
    wait_until_waiting(budget, 1)
    huge.end()
    assert last.has.wait(PATIENCE_S)
    last.end()
    assert order == [1, 1000, 1]


def test_the_wait_ends_at_the_deadline(threads: ThreadPoolExecutor) -> None:
    """Whoever comes too late is told so, and leaves no place in the queue behind."""
    now = 100.0
    budget, order = DecodeBudget(10, clock=lambda: now), list[int]()
    holder = Holder(budget, 10, threads, order)
    assert holder.has.wait(PATIENCE_S)
    with pytest.raises(DeadlineExceededError), budget.hold(1, deadline=100.0):
        pytest.fail("it got in")
    assert (budget.used, budget.waiting) == (10, 0)
    holder.end()
    with budget.hold(1, deadline=0.0):
        assert budget.used == 1


def test_a_failed_decode_gives_back() -> None:
    """An exception inside the block frees what it held."""
    budget = DecodeBudget(10)

    def fail() -> None:
        with budget.hold(7, FAR):
            assert budget.used == 7
            raise EOFError

    with pytest.raises(EOFError):
        fail()
    assert budget.used == 0


def test_the_sum_never_exceeds_the_budget(threads: ThreadPoolExecutor) -> None:
    """Over many images of many sizes on many threads, what is held stays within the budget or is one image."""
    budget, lock = DecodeBudget(100), threading.Lock()
    held: list[int] = []
    broken: list[list[int]] = []

    def decode(size: int) -> None:
        with budget.hold(size, FAR):
            with lock:
                held.append(size)
                if sum(held) > 100 and len(held) > 1:
                    broken.append(list(held))
            threading.Event().wait(0.0002)
            with lock:
                held.remove(size)

    list(threads.map(decode, [1 + (37 * index) % 130 for index in range(400)]))
    assert not broken
    assert budget.used == 0


def test_an_image_holds_what_its_header_announces() -> None:
    """The lane's thread waits for room before it decodes, and gives back whatever becomes of the image."""
    budget = DecodeBudget(1, clock=lambda: 0.0)
    detecting = Detecting(DecodeLimits(), budget, lambda: None, clock=lambda: 0.0)
    job = detecting.make_job(PICTURE, DetectOptions(), CONTRACT, deadline=1.0)
    assert job.tensor.shape == (64, 64, 3)
    with budget.hold(1, 1.0):
        late = Detecting(DecodeLimits(), budget, lambda: None, clock=iter((0.0, 2.0)).__next__)
        budget._clock = lambda: 2.0
        with pytest.raises(DeadlineExceededError):
            late.make_job(PICTURE, DetectOptions(), CONTRACT, deadline=1.0)
        assert budget.used == 1
    with pytest.raises(InvalidImageError):
        detecting.make_job(PICTURE[:200], DetectOptions(), CONTRACT, deadline=1.0)
    assert budget.used == 0


def test_time_spent_on_decoding_is_not_the_releases() -> None:
    """A lane marks an image as begun once it is decoded: one that never is says nothing against the release."""
    detecting = Detecting(DecodeLimits(), DecodeBudget(10**9), lambda: None)
    image = Encoded(PICTURE[:200], DetectOptions(), deadline=float("inf"))
    release = SimpleNamespace(digest="d", contract=CONTRACT)
    (error,) = detecting.run(SimpleNamespace(release=release), [image], Lane(0))  # type: ignore[arg-type]
    assert isinstance(error, InvalidImageError)
    assert image.begun is None
