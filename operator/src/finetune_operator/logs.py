"""Log lines: an event's name, then what belongs to it as keys and values; JSON or text."""

from __future__ import annotations

import json
import logging
import time
from typing import Any, Final

FIELDS: Final = "fields"


def of(**fields: Any) -> dict[str, Any]:
    """What belongs to an event, for `extra=`: under one key, for a record has names such as `name` of its own."""
    return {FIELDS: fields}


class Formatter(logging.Formatter):
    """One line per record; `form` is `json` or `text`."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info and record.exc_info[0] else {}
        given = getattr(record, FIELDS, {})
        fields = {"time": moment, "level": record.levelname, "event": record.getMessage(), **given, **trace}
        if self._json:
            return json.dumps(fields, default=str)
        return " ".join(f"{k}={v}" for k, v in fields.items())


def to_stderr(form: str) -> None:
    """Log the operator's own events from INFO on, kopf's from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
