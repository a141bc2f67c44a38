"""One member with a fake engine, a fake ledger and an actor that says what a test put down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from release_files import release_files

from models.rollout.ledger import FakeLedger
from models.rollout.messages import Admission, Attempt, Directive, Failure, Join, PollReply, Refused, Report, Target
from models.weights.cache import ReleaseCache
from serve.fake_engine import FakeEngine
from serve.member import Member
from serve.settings import Settings
from serve.trust import rule_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from models.errors import SteelyardError

Files = dict[str, "NDArray[np.uint8]"]


def arrays(number: int) -> tuple[str, Files]:
    """Return the digest and the files of a release as an actor hands them out: uint8 arrays (size,)."""
    digest, files = release_files(number)
    return digest, {name: np.frombuffer(data, np.uint8) for name, data in files.items()}


class FakeActor:
    """An actor that says what a test put down. Attributes are read on every call."""

    def __init__(self) -> None:
        """Name version 1 as committed in generation 4 and hand out its files."""
        digest, files = arrays(1)
        self.attempt = Attempt(4, 1, Target("1", digest, "p1"))
        self.stock: dict[str, Files] = {digest: files}
        self.signatures: dict[str, str] = {}
        self.lost = False
        self.raises: list[SteelyardError] = []
        self.answer: Join | Refused | None = Join(self.attempt, 1, decided=True)
        self.verdicts: list[Admission] = []
        self.asked: list[tuple[int, Failure | None]] = []
        self.directives: list[Directive] = []
        self.reports: list[Report] = []
        self.left = False

    async def next(self, model: str, report: Report) -> PollReply:
        """Return the next directive, or nothing after five seconds."""
        assert model == "m"
        self._check()
        self.reports.append(report)
        if self.directives:
            return PollReply(self.directives.pop(0))
        await asyncio.sleep(5.0)
        return PollReply(None)

    async def committed(self, model: str, replica: str) -> Join | Refused | None:
        """Return the answer, after raising all that is to be raised."""
        assert (model, replica) == ("m", "r")
        self._check()
        if self.raises:
            raise self.raises.pop(0)
        return self.answer

    async def admit(self, model: str, replica: str, generation: int, failure: Failure | None) -> Admission:
        """Return the next verdict, ``admitted`` at the end."""
        assert (model, replica) == ("m", "r")
        self._check()
        self.asked.append((generation, failure))
        return self.verdicts.pop(0) if self.verdicts else "admitted"

    async def leave(self, model: str, replica: str) -> None:
        """Remember it."""
        assert (model, replica) == ("m", "r")
        self._check()
        self.left = True

    async def files(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        """Return the files, or fail as a dead owner of shared memory does."""
        assert (model, bool(version)) == ("m", True)
        self._check()
        if digest not in self.stock:
            msg = "the owner of the object has died"
            raise ConnectionError(msg)
        return self.stock[digest]

    async def signature(self, model: str, version: str, digest: str) -> str:
        """Return the signature that a test put down, "" for none."""
        assert (model, bool(digest)) == ("m", True)
        self._check()
        return self.signatures.get(version, "")

    def _check(self) -> None:
        if self.lost:
            msg = "the actor is dead"
            raise ConnectionError(msg)


class Place:
    """A member with its engine, actor, ledger and cache."""

    def __init__(self, folder: Path, engine: FakeEngine | None = None, **settings: Any) -> None:
        """Build it; call inside a running loop."""
        self.settings = Settings(home=folder, models=("m",), **settings)
        self.actor, self.engine, self.ledger = FakeActor(), engine or FakeEngine(), FakeLedger()
        self.cache, self.rule = ReleaseCache(self.settings.cache), rule_of(self.settings)
        self.member = Member(
            "m", "r", self.engine, self.actor, self.ledger, self.cache, self.settings,
            clock=asyncio.get_running_loop().time,
        )  # fmt: skip
