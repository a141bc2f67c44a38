"""Wait, from outside, until a service that was just deployed answers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from models.errors import SteelyardError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLL_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 2.0
_OK: Final = 200


class NotReadyError(SteelyardError):
    """The service did not become ready."""

    code = "not_ready"


def wait_until_ready(
    url: str,
    models: Sequence[str],
    *,
    deadline_s: float,
    check: Callable[[], None],
    get: Callable[[str], tuple[int, dict[str, Any]]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Return what serves, one phrase a model, once ``url`` says that it is ready; blocks.

    check: called between two probes; raises what shows that waiting longer is vain.
    get: fetches an address; returns status and decoded body, (0, {}) while nobody answers.

    Raises NotReadyError after ``deadline_s`` seconds, or once the fleet has refused a model's only version.
    """
    fetch = get or get_json
    deadline = clock() + deadline_s
    while True:
        status, body = fetch(f"{url}/healthz/ready")
        # Before a replica answers, each request waits for it in vain until its own deadline.
        rollouts = {model: fetch(f"{url}/v1/models/{model}/rollout")[1] for model in models} if status else {}
        if status == _OK:
            return [_phrase(model, rollout) for model, rollout in rollouts.items()]
        for model, rollout in rollouts.items():
            if rollout.get("state") == "rejected" and not rollout.get("serving"):
                msg = f"{model} version {rollout.get('desired')} may not serve ({_where(rollout)}); promote another one"
                raise NotReadyError(msg)
        check()
        if clock() > deadline:
            why = body.get("detail") or "nothing answers"
            msg = f"the service was not ready after {deadline_s:.0f} s: {why}"
            raise NotReadyError(msg)
        sleep(POLL_S)


def get_json(url: str, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """Return status and body of a GET; (0, {}) where nobody answers, {} for a body that is no JSON object.

    key: the API key to send, None for none.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={} if key is None else {"X-Api-Key": key})  # noqa: S310 - our own URL
    try:
        with opener.open(request, timeout=PROBE_TIMEOUT_S) as response:
            return response.status, _decode(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decode(error.read())
    except OSError:
        return 0, {}


def _decode(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _where(rollout: dict[str, Any]) -> str:
    return ": ".join(str(part) for part in (rollout.get("step"), rollout.get("reason")) if part) or "refused"


def _phrase(model: str, rollout: dict[str, Any]) -> str:
    serving = rollout.get("serving")
    phrase = f"{model} version {serving}" if serving else model
    if rollout.get("state") == "rejected":
        phrase += f" (version {rollout.get('desired')} was refused, {_where(rollout)})"
    return phrase
