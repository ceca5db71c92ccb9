"""Data files → raw rows with their line numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.config import SourceConfig
from finetune_trainer.exits import UserError, raise_volume_failure
from finetune_trainer.fetch import download


@dataclass(frozen=True)
class RawRow:
    """One line of a source: its parsed value, or why it could not be parsed."""

    source: str
    row: int
    value: object
    error: str = ""


def read(source: SourceConfig) -> list[RawRow]:
    """All non-empty lines of a JSONL source (a JSON array is taken too). Raises UserError where there is none, OSError
    where its volume fails."""
    scheme, _, rest = source.source.partition("://")
    if source.mount is None and scheme == "https":
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "rows"
            download(source.source, target)
            return list(parse(source.source, target.read_bytes()))
    path = source.mount or (Path("/", rest) if scheme == "image" else None)
    if path is None:
        raise UserError(
            "SourceNotSupported", f"data source {source.source}: {scheme}:// is not supported yet", "Use configmap:// or pvc://."
        )
    try:
        return list(parse(source.source, path.read_bytes()))
    except OSError as error:
        raise_volume_failure(error)
        raise UserError(
            "SourceMissing", f"data source {source.source}: {error.strerror} ({path})", "Check the name and the path."
        ) from error


def parse(name: str, content: bytes) -> Iterator[RawRow]:
    """Rows of JSONL content; row numbers are line numbers from 1 (or positions in a JSON array)."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        yield from _parse_array(name, content)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield _parse_line(name, number, line)


def _parse_array(name: str, content: bytes) -> Iterator[RawRow]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("DataInvalid", f"{name} begins like a JSON array but is none: {error}", "Write one JSON object a line.") from error
    for number, value in enumerate(values, start=1):
        yield RawRow(name, number, value)


def _parse_line(name: str, number: int, line: bytes) -> RawRow:
    try:
        return RawRow(name, number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return RawRow(name, number, None, f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return RawRow(name, number, None, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return RawRow(name, number, None, f"not JSON: {error}")
