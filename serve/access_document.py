"""The access file: keys as JSON that holds digests and never a secret.

    {"format": 1, "keys": [{"id": "k7m2p9qxwz", "name": "till-4", "digest": "<64 hex digits>", "scopes": ["predict"],
     "created": "2026-01-31T12:00:00+00:00", "expires": null, "rate_per_s": 50.0, "concurrency": 8,
     "retiring": {"digest": "<64 hex digits>", "until": "2026-01-31T13:00:00+00:00"}}]}

Times are ISO 8601 with an offset. Only format, id, name, digest, scopes and created must be there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import SettingsError
from serve.access import KEY_ID, NAME, AccessKey, Retiring, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MAX_KEYS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class AccessFileError(SettingsError):
    """The access file cannot be read or written; the message says why, without its path."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Retiring(_Entry):
    digest: _Digest
    until: AwareDatetime


class _Key(_Entry):
    id: str = Field(pattern=f"^{KEY_ID.pattern}$")
    name: str = Field(pattern=f"^{NAME.pattern}$")
    digest: _Digest
    scopes: list[Scope] = Field(min_length=1)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    rate_per_s: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    concurrency: int | None = Field(default=None, ge=1)
    retiring: _Retiring | None = None


class _Document(_Entry):
    format: Literal[1]
    keys: list[_Key] = Field(max_length=MAX_KEYS)

    @model_validator(mode="after")
    def _refuse_doubles(self) -> Self:
        for what in ("id", "name"):
            found = [getattr(key, what) for key in self.keys]
            if len(set(found)) != len(found):
                msg = f"two keys have one {what}"
                raise ValueError(msg)
        return self


def parse(content: bytes) -> tuple[AccessKey, ...]:
    """Return the keys of an access file. Raises AccessFileError, which quotes nothing of the content."""
    try:
        document = _Document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = "it is no JSON" if first["type"] == "json_invalid" else first["msg"].removeprefix("Value error, ")
        msg = f"the access file is damaged{f' at {where}' if where else ''}: {why}; mend it, or restore a copy"
        raise AccessFileError(msg) from None
    return tuple(_key(entry) for entry in document.keys)


def render(keys: Iterable[AccessKey]) -> bytes:
    """Return the access file that holds ``keys``."""
    entries = [
        _Key(
            id=key.key_id,
            name=key.name,
            digest=key.digest.hex(),
            scopes=sorted(key.scopes),
            created=_time(key.created),
            expires=None if key.expires is None else _time(key.expires),
            rate_per_s=key.rate_per_s,
            concurrency=key.concurrency,
            retiring=None
            if key.retiring is None
            else _Retiring(digest=key.retiring.digest.hex(), until=_time(key.retiring.until)),
        )
        for key in keys
    ]
    return _Document(format=1, keys=entries).model_dump_json(indent=1).encode() + b"\n"


def read(path: Path) -> bytes | None:
    """Return what the access file holds, None where there is none; blocks. Raises AccessFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        msg = f"the access file cannot be read ({error.strerror}); give this user the right to"
        raise AccessFileError(msg) from error
    if len(content) > MAX_BYTES:
        msg = f"the access file is larger than {MAX_BYTES} bytes; revoke what nobody uses"
        raise AccessFileError(msg)
    return content


def read_keys(path: Path) -> Sequence[AccessKey] | None:
    """Return the keys of the access file, None where there is none; blocks. Raises AccessFileError."""
    content = read(path)
    return None if content is None else parse(content)


def _key(entry: _Key) -> AccessKey:
    return AccessKey(
        key_id=entry.id,
        name=entry.name,
        digest=bytes.fromhex(entry.digest),
        scopes=frozenset(entry.scopes),
        created=entry.created.timestamp(),
        expires=None if entry.expires is None else entry.expires.timestamp(),
        rate_per_s=entry.rate_per_s,
        concurrency=entry.concurrency,
        retiring=None
        if entry.retiring is None
        else Retiring(bytes.fromhex(entry.retiring.digest), entry.retiring.until.timestamp()),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
