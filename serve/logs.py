"""Log lines in JSON, written by a thread of their own, so that a full pipe never holds up the event loop.

A line holds what the caller logged and the fields of ``FIELDS``; no client data but the request id. An exception that
ended a request is told without its message, which may quote what the client sent: a library's words are not ours.
"""

from __future__ import annotations

import logging
import queue
import sys
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from traceback import extract_tb
from typing import TYPE_CHECKING, Final, TextIO

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGERS: Final = ("serve", "models", "steelyard")
"""Roots of this project's loggers; those of libraries are left as they are."""
FIELDS: Final = (
    "request_id", "principal", "route", "method", "status", "ms", "model", "version", "digest", "generation",
    "replica", "step", "result", "reason", "key_id", "trace_id", "images", "decode_ms", "queue_ms", "infer_ms",
    "post_ms",
)  # fmt: skip
QUEUE_LINES: Final = 10_000


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (UTC, ISO 8601), level, logger, message, then the fields that the call gave."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((name, record.__dict__[name]) for name in FIELDS if name in record.__dict__)
        if record.exc_info and record.exc_info[1] is not None:
            of_request = "request_id" in record.__dict__
            line["exception"] = (
                without_messages(record.exc_info[1]) if of_request else self.formatException(record.exc_info)
            )
        return orjson.dumps(line, default=str).decode()


def without_messages(error: BaseException) -> str:
    """Return where ``error`` and what led to it were raised: types, functions, files and lines, never a message."""
    found: list[str] = []
    seen: set[int] = set()
    next_one: BaseException | None = error
    while next_one is not None and id(next_one) not in seen:
        seen.add(id(next_one))
        frames = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in extract_tb(next_one.__traceback__)]
        found.append(" > ".join([*frames, type(next_one).__qualname__]))
        next_one = next_one.__cause__ or (None if next_one.__suppress_context__ else next_one.__context__)
    return "\nafter ".join(found)


class BoundedQueueHandler(QueueHandler):
    """Hands lines to the writer's thread; when it falls behind, lines are dropped and counted, nothing waits."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        """Write into ``lines``, which is bounded."""
        super().__init__(lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Keep the record whole: the thread formats it, in this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue ``record``, or drop and count it."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


def setup_logging(level: str, stream: TextIO | None = None) -> Callable[[], None]:
    """Send this project's log lines of ``level`` and above to ``stream`` (stderr); return what stops and flushes it."""
    output = logging.StreamHandler(stream or sys.stderr)
    output.setFormatter(JsonFormatter())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LINES)
    handler = BoundedQueueHandler(lines)
    listener = QueueListener(lines, output)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    listener.start()

    def stop() -> None:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        listener.stop()

    return stop
