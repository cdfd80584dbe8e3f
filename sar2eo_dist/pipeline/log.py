"""What a job tells on stderr while it runs: lines for a person, or (`run.log: json`) one JSON object a line for a machine.

Standard output stays what it is: the result, a line a verb.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import Any

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR
LOGGER = logging.getLogger("sar2eo_dist")


class Stderr(logging.Handler):
    """Writes to whatever sys.stderr is at that moment: a progress bar puts its own there."""

    def emit(self, record: logging.LogRecord) -> None:
        if line := self.format(record):
            print(line, file=sys.stderr, flush=True)


class Text(logging.Formatter):
    """The words alone; an event without words is for machines."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class Json(logging.Formatter):
    """ts (UTC), level, event, then the event's own fields; `always`: fields of every line."""

    def __init__(self, always: dict[str, Any]) -> None:
        super().__init__()
        self.always = always

    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line = {"ts": when, "level": record.levelname.lower(), "event": getattr(record, "event", "message")}
        line |= self.always | getattr(record, "fields", {})
        if text := record.getMessage():
            line["text"] = text
        return json.dumps(line, default=str)


def configure(form: str, submission: str = "") -> None:
    """Say how this process tells. form: "text" or "json"; submission: id of the Ray job, carried by every JSON line."""
    handler = Stderr()
    handler.setFormatter(Json({"submission": submission} if submission else {}) if form == "json" else Text())
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(INFO)


def as_json() -> bool:
    """Whether a machine reads along, so that bars and lines for the eye are left out."""
    return any(isinstance(h.formatter, Json) for h in LOGGER.handlers)


def tell(level: int, event: str, text: str = "", **fields: Any) -> None:
    """One event: `text` for a person ("" = nothing), all of it for a machine. Never a secret: URIs carry none."""
    LOGGER.log(level, "%s", text, extra={"event": event, "fields": fields})


configure("text")
