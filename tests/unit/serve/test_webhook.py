"""MLflow's webhooks: only what is genuine, fresh and new passes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.webhooks.delivery import _generate_hmac_signature

from serve.errors import InvalidBodyError, SignatureError, StaleDeliveryError
from serve.webhook import TOLERANCE_S, AliasMoved, Deliveries, Delivery, concerns, read_event, sign, verify

SECRET = "a secret of the registry's"  # noqa: S105 - the test's own
NOW = 1_790_000_000.0
ID = "7b7c2a8e-6f0e-4a57-9a8c-0a1f1f6f9f10"
BODY = json.dumps(
    {
        "entity": "model_version_alias",
        "action": "created",
        "timestamp": "2026-11-21T17:22:59.654641+00:00",
        "data": {"name": "checkout", "alias": "production", "version": "2"},
    }
).encode()


def headers(body: bytes = BODY, *, ident: str = ID, sent: float = NOW, secret: str = SECRET) -> dict[str, str]:
    """Return the headers of a delivery."""
    timestamp = str(int(sent))
    return {
        "x-mlflow-signature": sign(secret, ident, timestamp, body),
        "x-mlflow-delivery-id": ident,
        "x-mlflow-timestamp": timestamp,
    }


def test_what_mlflow_signs_passes() -> None:
    """The library's own signing function, over its own way to write a body."""
    signed = headers() | {"x-mlflow-signature": _generate_hmac_signature(SECRET, ID, str(int(NOW)), BODY.decode())}
    assert verify(signed, BODY, secret=SECRET, now=NOW) == Delivery(ID, NOW)


@given(secret=st.text(min_size=1), body=st.text(), ident=st.uuids(), sent=st.integers(0, 10**11))
def test_our_signature_is_mlflows(secret: str, body: str, ident: object, sent: int) -> None:
    """For any secret and any body, in any alphabet."""
    mlflows = _generate_hmac_signature(secret, str(ident), str(sent), body)
    assert sign(secret, str(ident), str(sent), body.encode()) == mlflows


@pytest.mark.parametrize("away", [-TOLERANCE_S, 0.0, TOLERANCE_S])
def test_five_minutes_either_way_are_allowed(away: float) -> None:
    """Clocks differ, and a delivery that is tried again keeps its time."""
    assert verify(headers(), BODY, secret=SECRET, now=NOW + away).sent == NOW


@pytest.mark.parametrize(("away", "words"), [(301.0, "301 s ago"), (-301.0, "301 s in the future"), (1e9, "ago")])
def test_old_and_future_deliveries_are_refused(away: float, words: str) -> None:
    """With the distance, so that somebody can mend the clock."""
    with pytest.raises(StaleDeliveryError, match=words):
        verify(headers(), BODY, secret=SECRET, now=NOW + away)


@pytest.mark.parametrize(
    "change",
    [
        {"x-mlflow-signature": ""},
        {"x-mlflow-signature": "v1,"},
        {"x-mlflow-signature": headers(secret="another")["x-mlflow-signature"]},  # noqa: S106
        {"x-mlflow-signature": headers()["x-mlflow-signature"].removeprefix("v1,")},
        {"x-mlflow-signature": headers()["x-mlflow-signature"].replace("v1,", "v2,")},
        {"x-mlflow-signature": "v1,ключ"},
        {"x-mlflow-signature": " ".join(["v1,x"] * 8) + " " + headers()["x-mlflow-signature"]},
        {"x-mlflow-delivery-id": ""},
        {"x-mlflow-delivery-id": "another"},
        {"x-mlflow-delivery-id": "a" * 129},
        {"x-mlflow-timestamp": ""},
        {"x-mlflow-timestamp": str(int(NOW) + 1)},
        {"x-mlflow-timestamp": f"{NOW}"},
        {"x-mlflow-timestamp": "nan"},
        {"x-mlflow-timestamp": "9" * 400},
        {"x-mlflow-timestamp": "१"},
    ],
)
def test_any_header_that_does_not_fit_is_refused(change: dict[str, str]) -> None:
    """Missing, foreign, malformed or too many."""
    with pytest.raises(SignatureError):
        verify(headers() | change, BODY, secret=SECRET, now=NOW)


@given(data=st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    """The body is covered by the signature as a whole."""
    place, bit = data.draw(st.integers(0, len(BODY) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(BODY)
    changed[place] ^= 1 << bit
    with pytest.raises(SignatureError):
        verify(headers(), bytes(changed), secret=SECRET, now=NOW)


@given(st.dictionaries(st.sampled_from(sorted(headers())), st.text(max_size=200)), st.binary(max_size=200))
def test_without_the_secret_nothing_passes_and_nothing_breaks(given_: dict[str, str], body: bytes) -> None:
    """Whatever anyone sends, the answer is a refusal."""
    with pytest.raises(SignatureError):
        verify(given_, body, secret=SECRET, now=NOW)


def test_one_of_two_signatures_is_enough() -> None:
    """A sender that changes its secret signs with both for a while."""
    signed = headers()
    signed["x-mlflow-signature"] = f"v1,AAAA {signed['x-mlflow-signature']}"
    assert verify(signed, BODY, secret=SECRET, now=NOW).ident == ID


def test_an_event_names_model_and_alias() -> None:
    """Only the production alias concerns the rollout."""
    event = read_event(BODY)
    assert event == AliasMoved("checkout", "production")
    assert concerns(event)
    assert not concerns(AliasMoved("checkout", "staging"))
    assert not concerns(read_event(b'{"entity": "registered_model", "action": "created", "data": {"name": "m"}}'))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"{}", b"\xff", b"[" * 20_000),
        b'{"entity": "model_version_alias"}',
        b'{"entity": "model_version_alias", "data": []}',
        b'{"entity": "model_version_alias", "data": {"name": 1, "alias": "production"}}',
    ],
)
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    """As an error of the client's, whatever it is."""
    with pytest.raises(InvalidBodyError):
        read_event(body)


def test_a_delivery_is_taken_once() -> None:
    """Also at the very end of the time in which it would still pass."""
    memory = Deliveries()
    assert memory.take(Delivery("a", NOW), NOW - TOLERANCE_S)
    assert not memory.take(Delivery("a", NOW), NOW + TOLERANCE_S)
    assert memory.take(Delivery("b", NOW), NOW)
    assert memory.take(Delivery("c", NOW + 400), NOW + 400)
    assert len(memory) == 1
    assert not memory.take(Delivery("a", NOW), NOW + 400)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-400, 400), st.integers(0, 200)), max_size=60),
    st.integers(1, 5),
)
def test_however_small_the_memory_nothing_is_taken_twice(steps: list[tuple[int, int, int]], limit: int) -> None:
    """Bounded, and what it forgot for want of room it still refuses."""
    memory, now = Deliveries(limit), NOW
    sent: dict[int, float] = {}
    taken: set[int] = set()
    for ident, offset, pause in steps:
        now += pause
        # A delivery's time is signed with its id: it stays the same however often it is sent.
        delivery = Delivery(str(ident), sent.setdefault(ident, now + offset))
        if memory.take(delivery, now):
            assert ident not in taken
            taken.add(ident)
        assert len(memory) <= limit


def test_a_flood_in_one_second_is_bounded() -> None:
    """Where ids run out, the rest is refused and polling brings the change."""
    memory = Deliveries(limit=3)
    assert [memory.take(Delivery(str(number), NOW), NOW) for number in range(5)] == [True, True, True, False, False]
    assert memory.take(Delivery("later", NOW + 1), NOW)
