"""Structured logs: one JSON object a line."""

from __future__ import annotations

import datetime
import json
import logging
import typing

LOG = logging.getLogger("synergen_jax.serving.http")
LOGGERS = (LOG.name, "uvicorn", "asyncio")


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, event, the fields that it was given, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def begin(stream: typing.TextIO) -> None:
    """Sends what the service, uvicorn and the event loop log to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger is LOG else logging.WARNING)


def say(event: str, **fields: typing.Any) -> None:
    """Logs that something happened."""
    LOG.info(event, extra={"fields": fields})


def failed(event: str, **fields: typing.Any) -> None:
    """Logs the error that is being handled, with its traceback."""
    LOG.exception(event, extra={"fields": fields})
