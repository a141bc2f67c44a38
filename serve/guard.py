"""Who may: one decision a request, before its route is even looked for, so that no route can forget it.

While keys are in force:

- The probes ``/healthz/live`` and ``/healthz/ready`` are open. MLflow's webhook has a signature of its own.
- Everything else, whether it exists or not, answers a request without a valid key with the same 401: a key that is
  missing, malformed, unknown, past its time or wrong cannot be told apart by answer, and costs the same comparison.
- Which scope a request needs follows from the text of its path alone. A valid key without it gets 403 for what exists
  and what does not alike; only who holds the scope learns by a 404 that there is nothing.

A route of the admin checks its scope once more (``serve/admin.py``): how a path is read here and there may differ.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from models.errors import UnauthorizedError
from serve.access import AccessKey, Scope
from serve.errors import ForbiddenError
from serve.hooks import PATH as HOOK_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from serve.access_file import AccessFile

OPEN: Final = frozenset({"/healthz/live", "/healthz/ready"})
AUTHORIZATION: Final = b"authorization"
API_KEY: Final = b"x-api-key"

_SCOPE_KEY: Final = "steelyard.key"
_PREDICT: Final = frozenset({Scope.PREDICT})
_ADMIN: Final = frozenset({Scope.ADMIN})
_METRICS: Final = frozenset({Scope.METRICS})
_READ: Final = frozenset({Scope.PREDICT, Scope.ADMIN})
_MODELS: Final = "/v1/models"
_ACTIONS: Final = ("/promote", "/rollback")
_NO_KEY: Final = "This needs a valid API key; send it as Authorization: Bearer <key> or X-Api-Key: <key>"


class Guard:
    """Lets requests of one application pass or not."""

    def __init__(
        self,
        file: AccessFile,
        *,
        anonymous_predict: bool,
        webhook: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Guard with the keys of ``file``.

        anonymous_predict: what the scope ``predict`` opens is open to everybody. webhook: there is MLflow's webhook.
        now: unix seconds.
        """
        self._file = file
        self._anonymous = anonymous_predict
        self._webhook = webhook
        self._now = now

    def admit(self, scope: MutableMapping[str, Any]) -> AccessKey | None:
        """Return the key by which an HTTP request may pass, None where it needs none.

        Raises UnauthorizedError without a valid key, ForbiddenError where the key lacks the scope.
        """
        keys = self._file.keys
        if keys is None:
            return None
        path = path_of(scope)
        if path in OPEN or (self._webhook and path == HOOK_PATH and scope["method"] == "POST"):
            return None
        wanted = scopes_for(path)
        key = keys.find(credential_of(scope["headers"]), self._now())
        scope[_SCOPE_KEY] = key
        if self._anonymous and Scope.PREDICT in wanted:
            return key
        if key is None:
            raise UnauthorizedError(_NO_KEY)
        if wanted.isdisjoint(key.scopes):
            msg = f"This key may not do that; it takes one with the scope {' or '.join(sorted(wanted))}"
            raise ForbiddenError(msg)
        return key


def path_of(scope: MutableMapping[str, Any]) -> str:
    """Return the path below the application's own, as routes are matched: they overlook one newline at its end."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).removesuffix("\n")


def scopes_for(path: str) -> frozenset[Scope]:
    """Return the scopes of which a key needs one for ``path``, known or not. An admin may read what it changes."""
    if path.startswith(_MODELS):
        if path.endswith(_ACTIONS):
            return _ADMIN
        return _PREDICT if path.endswith("/detect") else _READ
    if path == "/metrics":
        return _METRICS
    return _ADMIN if path == "/v1/faults" else _PREDICT


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key's text that a request carries; empty where there is none, or two that differ."""
    found: bytes | None = None
    for name, value in headers:
        if name == API_KEY:
            text = value.strip()
        elif name == AUTHORIZATION:
            scheme, _, text = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue  # a gateway's own
            text = text.strip()
        else:
            continue
        if found is not None and found != text:
            return b""
        found = text
    return found or b""


def key_in_force(scope: MutableMapping[str, Any]) -> tuple[bool, AccessKey | None]:
    """Return whether the request's path is under keys, and the valid key that it carries."""
    return _SCOPE_KEY in scope, scope.get(_SCOPE_KEY)
