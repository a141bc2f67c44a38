"""The sink on Ray's metrics, without a cluster: what is handed to Ray, and what a node that does not answer means."""

from typing import Any

import pytest

from models.errors import UnavailableError
from serve import replica_metrics
from serve.ports import free_ports
from serve.replica_metrics import NodeExposition, RaySink
from serve.telemetry import GENERATION, IMAGES, STAGE_SECONDS


class FakeInstrument:
    """Stands for Counter, Gauge and Histogram of Ray's; notes every call."""

    made: list["FakeInstrument"]

    def __init__(self, name: str, meaning: str, *arguments: Any) -> None:
        """Note how it was made."""
        self.name, self.meaning, self.arguments = name, meaning, arguments
        self.tags: dict[str, str] = {}
        self.calls: list[tuple[float, dict[str, str]]] = []
        self.made.append(self)

    def set_default_tags(self, tags: dict[str, str]) -> "FakeInstrument":
        """Note the tags."""
        self.tags = tags
        return self

    def _record(self, value: float, tags: dict[str, str]) -> None:
        self.calls.append((value, tags))

    set = observe = _record

    def inc(self, value: float, tags: dict[str, str]) -> None:
        """Note the value; 0 is an error, as in Ray."""
        assert value > 0
        self._record(value, tags)


@pytest.fixture(name="made")
def _made(monkeypatch: pytest.MonkeyPatch) -> list[FakeInstrument]:
    """Put fakes in place of Ray's instruments and return those that get made."""
    FakeInstrument.made = []
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(replica_metrics.ray_metrics, kind, FakeInstrument)
    return FakeInstrument.made


def test_every_series_names_its_replica(made: list[FakeInstrument]) -> None:
    """Counts of several replicas on a node do not overwrite each other."""
    sink = RaySink("r1")
    sink.counter(IMAGES).inc({"model": "checkout", "outcome": "ok"})
    sink.refresh()
    sink.histogram(STAGE_SECONDS).observe({"model": "checkout", "stage": "infer"}, 0.02)
    assert [each.tags for each in made] == [{"replica": "r1"}] * 2
    assert all(each.arguments[-1][-1] == "replica" for each in made)
    assert made[0].name == "steelyard_images"
    assert made[1].arguments[0] == list(STAGE_SECONDS.buckets)


def test_adding_nothing_shows_the_series(made: list[FakeInstrument]) -> None:
    """Ray's ``inc`` refuses 0; a series that is there before its first event lets ``increase`` see that one too."""
    sink = RaySink("r1")
    sink.counter(IMAGES).inc({"model": "checkout", "outcome": "ok"}, 0.0)
    sink.refresh()
    assert made[0].calls == [(0.0, {"model": "checkout", "outcome": "ok"})]


def test_a_refresh_sets_every_gauge_to_its_last_value(made: list[FakeInstrument]) -> None:
    """Each series comes again once, with what it was set to last."""
    sink = RaySink("r1")
    gauge = sink.gauge(GENERATION)
    gauge.set({"model": "checkout"}, 1.0)
    gauge.set({"model": "checkout"}, 2.0)
    gauge.set({"model": "street"}, 7.0)
    for _ in range(2):
        made[0].calls.clear()
        sink.refresh()
        assert made[0].calls == [(2.0, {"model": "checkout"}), (7.0, {"model": "street"})]


def test_a_refresh_tells_what_was_counted_since_the_last(made: list[FakeInstrument]) -> None:
    """Ray is asked once a series however often it was counted, and nothing is told twice or lost."""
    sink = RaySink("r1")
    counter = sink.counter(IMAGES)
    for outcome in ("ok", "ok", "overloaded", "ok"):
        counter.inc({"model": "checkout", "outcome": outcome})
    assert made[0].calls == []
    sink.refresh()
    assert made[0].calls == [
        (3.0, {"model": "checkout", "outcome": "ok"}),
        (1.0, {"model": "checkout", "outcome": "overloaded"}),
    ]
    made[0].calls.clear()
    counter.inc({"model": "checkout", "outcome": "ok"}, 2.0)
    sink.refresh()
    sink.refresh()
    assert made[0].calls == [(2.0, {"model": "checkout", "outcome": "ok"})]


async def test_a_node_that_does_not_answer_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The route answers 503 instead of half an exposition."""
    monkeypatch.setattr(replica_metrics, "_exposition_url", lambda: f"http://127.0.0.1:{free_ports(1)[0]}/metrics")
    with pytest.raises(UnavailableError, match="cannot be read now"):
        await NodeExposition().read()
