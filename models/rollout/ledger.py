"""The ledger: the one place where a generation is decided, once, for all who may be in doubt.

The port is put-if-absent over write-once keys. Everything the protocol writes is a *program*: a generator that
yields operations and receives their results, so that the service and the model checker run the same code and a crash
or another process may come between any two operations.

Keys of one deployment:

    incarnation/<n>            token of the n-th life of the rollout actor
    <model>/claim/<g>          the attempt that owns generation g
    <model>/decision/<g>       COMMIT or ABORT, first writer wins
    <model>/member/<replica>   admitted, not yet proven dead

The fence: a life claims its incarnation first and reads claims and members after; an earlier life writes its claim or
member first and reads whether a later incarnation exists after. So either the later life sees the write or the earlier
one sees that it is deposed, and acts no more.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeVar

from models.errors import LedgerError
from models.rollout.messages import Attempt, Target

Verdict = Literal["COMMIT", "ABORT"]
ClaimOutcome = Literal["won", "lost", "deposed"]
T = TypeVar("T")


class Ledger(Protocol):
    """Write-once keys that every process of a deployment sees. Every method has a deadline and raises LedgerError."""

    async def put_if_absent(self, key: str, value: str) -> str:
        """Store ``value`` unless ``key`` exists; return the value that stands. Safe to repeat after a failure."""
        ...

    async def get(self, key: str) -> str | None:
        """Return the value of ``key`` or None."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``, in any order."""
        ...

    async def delete(self, key: str) -> None:
        """Remove ``key``; nothing happens where it is absent."""
        ...


@dataclass(frozen=True, slots=True)
class Put:
    """Put-if-absent; the result is the value that stands."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read one key; the result is its value or None."""

    key: str


@dataclass(frozen=True, slots=True)
class Keys:
    """List keys by prefix."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one key."""

    key: str


Op = Put | Get | Keys | Delete
Result = str | list[str] | None
Program = Generator[Op, Result, T]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a new life of the actor learns from the ledger: every earlier attempt is decided when this exists.

    committed: the newest attempt with COMMIT. top: highest generation ever claimed, 0 for none.
    aborted: generations with ABORT at or above the committed one. members: ids of the durable member set.
    """

    committed: Attempt | None
    top: int
    aborted: frozenset[int]
    members: frozenset[str]


async def run(program: Program[T], ledger: Ledger) -> T:
    """Run ``program`` against ``ledger``; LedgerError passes through and leaves a prefix of it done."""
    result: Result = None
    while True:
        try:
            op = program.send(result)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        result = await perform(op, ledger)


async def perform(op: Op, ledger: Ledger) -> Result:
    """Run one operation."""
    match op:
        case Put(key, value):
            return await ledger.put_if_absent(key, value)
        case Get(key):
            return await ledger.get(key)
        case Keys(prefix):
            return await ledger.keys(prefix)
        case Delete(key):
            await ledger.delete(key)
            return None


def claim_incarnation(token: str) -> Program[int]:
    """Take the next incarnation for the life that ``token`` (unique a life) names; return its number, >= 1."""
    taken = yield Keys("incarnation/")
    number = 1 + max((_number(key) for key in taken or ()), default=0)
    while (yield Put(f"incarnation/{number}", token)) != token:
        number += 1
    return number


def recover(model: str) -> Program[Recovery]:
    """Decide every undecided attempt with ABORT and return what stands. Run it after ``claim_incarnation``."""
    claims = yield Keys(f"{model}/claim/")
    committed: Attempt | None = None
    aborted: set[int] = set()
    generations = sorted(_number(key) for key in claims or ())
    for generation in generations:
        standing = yield decision(model, generation, "ABORT")
        if standing == "COMMIT":
            text = yield Get(f"{model}/claim/{generation}")
            # A sweep by an older life can remove a claim below a newer commit at any time.
            committed = decode(str(text)) if text is not None else committed
        else:
            aborted.add(generation)
    members = yield Keys(f"{model}/member/")
    floor = committed.generation if committed else 0
    return Recovery(
        committed=committed,
        top=max(generations, default=0),
        aborted=frozenset(g for g in aborted if g > floor),
        members=frozenset(key.removeprefix(f"{model}/member/") for key in members or ()),
    )


def claim(model: str, attempt: Attempt) -> Program[ClaimOutcome]:
    """Claim the attempt's generation. A generation that another life holds is aborted before ``lost`` is returned."""
    text = encode(attempt)
    winner = yield Put(f"{model}/claim/{attempt.generation}", text)
    later = yield Get(f"incarnation/{attempt.incarnation + 1}")
    if later is not None:
        return "deposed"
    if winner == text:
        return "won"
    yield decision(model, attempt.generation, "ABORT")
    return "lost"


def decision(model: str, generation: int, verdict: Verdict) -> Put:
    """Return the operation that decides ``generation``; its result is the verdict that stands."""
    return Put(f"{model}/decision/{generation}", verdict)


def record_member(model: str, replica: str, incarnation: int) -> Program[bool]:
    """Make ``replica`` a member durably; False when a later life of the actor must admit it instead."""
    yield Put(f"{model}/member/{replica}", str(incarnation))
    later = yield Get(f"incarnation/{incarnation + 1}")
    return later is None


def forget_member(model: str, replica: str) -> Program[None]:
    """Remove a member that is proven dead or can start no batch any more."""
    yield Delete(f"{model}/member/{replica}")


def membership(model: str, replica: str) -> Get:
    """Return the operation that asks whether ``replica`` is counted as a member; its result is None where it is not."""
    return Get(f"{model}/member/{replica}")


def sweep(model: str, committed: int) -> Program[None]:
    """Remove claims and decisions below the committed generation: no member can be in doubt about them."""
    for kind in ("claim", "decision"):
        keys = yield Keys(f"{model}/{kind}/")
        for key in keys or ():
            if _number(key) < committed:
                yield Delete(key)


def encode(attempt: Attempt) -> str:
    """Return the attempt as JSON with sorted keys."""
    return json.dumps(asdict(attempt), sort_keys=True)


def decode(text: str) -> Attempt:
    """Return the attempt that ``encode`` wrote; raises LedgerError on anything else."""
    try:
        raw = json.loads(text)
        previous = raw["previous"]
        return Attempt(
            generation=int(raw["generation"]),
            incarnation=int(raw["incarnation"]),
            target=Target(**raw["target"]),
            previous=None if previous is None else Target(**previous),
            rollback=bool(raw.get("rollback", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = "the ledger holds a record that this version cannot read; finish or remove the other deployment first"
        raise LedgerError(msg) from error


def _number(key: str) -> int:
    return int(key.rpartition("/")[2])


class FakeLedger:
    """A ledger in memory. ``reachable`` False makes every call fail; ``lose_replies`` fails after the effect."""

    def __init__(self) -> None:
        """Start empty and reachable."""
        self.data: dict[str, str] = {}
        self.reachable = True
        self.lose_replies = 0

    async def put_if_absent(self, key: str, value: str) -> str:
        """See Ledger."""
        self._check()
        standing = self.data.setdefault(key, value)
        self._reply()
        return standing

    async def get(self, key: str) -> str | None:
        """See Ledger."""
        self._check()
        return self.data.get(key)

    async def keys(self, prefix: str) -> list[str]:
        """See Ledger."""
        self._check()
        return [key for key in self.data if key.startswith(prefix)]

    async def delete(self, key: str) -> None:
        """See Ledger."""
        self._check()
        self.data.pop(key, None)
        self._reply()

    def _check(self) -> None:
        if not self.reachable:
            msg = "the ledger cannot be reached: nothing was decided, ask again"
            raise LedgerError(msg)

    def _reply(self) -> None:
        if self.lose_replies:
            self.lose_replies -= 1
            msg = "the ledger did not answer in time: ask again"
            raise LedgerError(msg)
