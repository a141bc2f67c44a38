"""Log lines: JSON, bounded, and nothing of the client but its request's id."""

from __future__ import annotations

import io
import logging
import queue

import orjson

from serve.logs import BoundedQueueHandler, JsonFormatter, setup_logging, without_messages


def test_lines_are_json_with_known_fields_only() -> None:
    """What a caller adds under an unknown name stays out."""
    stream = io.StringIO()
    stop = setup_logging("info", stream)
    try:
        logger = logging.getLogger("serve.somewhere")
        logger.info("flipped %s", "checkout", extra={"request_id": "a", "generation": 2, "client_ip": "10.0.0.1"})
        logger.debug("too little")
        try:
            raise ValueError("why")  # noqa: EM101, TRY301 - the traceback is what is tested
        except ValueError:
            logger.exception("failed")
    finally:
        stop()
    first, second = (orjson.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("ts").endswith("+00:00")
    assert first == {
        "level": "info", "logger": "serve.somewhere", "message": "flipped checkout", "request_id": "a", "generation": 2,
    }  # fmt: skip
    assert "ValueError: why" in second["exception"]
    assert logging.getLogger("serve").propagate


def _fail_on(text: str) -> None:
    raise ValueError(text)


def test_what_ended_a_request_is_told_without_its_words() -> None:
    """A library's message may quote the client; types and places, those of the cause too, are enough to find it."""
    stream = io.StringIO()
    stop = setup_logging("info", stream)
    try:
        try:
            try:
                _fail_on("canary")
            except ValueError as error:
                raise KeyError("canary") from error  # noqa: EM101 - the message is what must not show
        except KeyError:
            logging.getLogger("serve.somewhere").exception("request failed", extra={"request_id": "a"})
    finally:
        stop()
    assert "canary" not in stream.getvalue()
    told = orjson.loads(stream.getvalue())["exception"].splitlines()
    assert told[0].endswith("KeyError")
    assert told[1].startswith("after ")
    assert "_fail_on (" in told[1]
    assert told[1].endswith("ValueError")


def test_causes_that_run_in_a_circle_end() -> None:
    """An exception may be its own cause's cause."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert without_messages(first) == "ValueError\nafter KeyError"


def test_a_writer_that_is_behind_costs_lines_not_time() -> None:
    """A full queue drops and counts."""
    handler = BoundedQueueHandler(queue.Queue(1))
    record = logging.LogRecord("serve", logging.INFO, "", 0, "x", (), None)
    for _ in range(3):
        handler.emit(record)
    assert handler.dropped == 2


def test_a_line_break_cannot_forge_a_line() -> None:
    """Whatever a message holds, it stays one line."""
    record = logging.LogRecord("serve", logging.INFO, "", 0, 'x\n{"level":"info"}', (), None)
    assert "\n" not in JsonFormatter().format(record)
