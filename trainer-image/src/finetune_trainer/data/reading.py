"""Data files → raw rows with their numbers, in bounded memory whatever a file holds.

JSON lines, a JSON array, CSV and TSV, Parquet; each of the first three also compressed by gzip, bzip2, xz or zstd. The
content says which it is where it can, else the name. Rows of text files are numbered by line, others by position.
Invariant: a line, or an element of an array, of more than 32 MiB is never taken in, nor are as many blanks between two.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from finetune_trainer import layout
from finetune_trainer.exits import UserError, raise_volume_failure

LONGEST = 32 << 20
BLOCK = 1 << 20
BATCH = 1024
FIELDS = ("messages", "prompt", "completion", "instruction", "input", "output", "system", "chosen", "rejected", "text", "json_schema")
COMPARED = ("chosen", "rejected")  # cells of a table hold their text, or turns as JSON; those of messages turns alone
ONE_A_LINE = "Write one JSON object a line."
SEPARATORS = (",", "\t", ";")  # the last is Excel's, where a comma parts a number's decimals
_BLANKS = re.compile(r"\s*")
_TABLE = re.compile(r"\.(csv|tsv)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_ZIP, _PARQUET, _ZSTD = b"PK\x03\x04", b"PAR1", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class DataFile:
    """A file on this machine, or one whose content is known by its sha256 and that comes here by `bring`; and the name that complaints
    call it by."""

    name: str
    path: Path
    sha256: str = ""
    bring: Callable[[], None] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class RawRow:
    """One row of a file: its parsed value, or why it could not be parsed, with the beginning of its text."""

    source: str
    row: int
    value: object
    error: str = ""
    text: str = ""


def read(file: DataFile) -> Iterator[RawRow]:
    """The rows of a file. Raises UserError where it cannot be read on, OSError where its volume fails."""
    with _readable(file):
        if _head(file.path, 4) == _PARQUET:
            yield from _parquet(file)
            return
        with _opened(file) as stream:
            yield from _text(file, stream)


def sha256(file: DataFile) -> str:
    """Hex sha256 of a file's content, computed where it is not known. Raises as `read` does."""
    with _readable(file):
        return file.sha256 or layout.sha256_file(file.path)


@contextmanager
def _readable(file: DataFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_volume_failure(error)
        if error.errno is None:
            _damaged(file, error)
        raise UserError("SourceMissing", f"data source {file.name}: {error.strerror}", "Check the name and the path.") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        _damaged(file, error)


def _damaged(file: DataFile, error: Exception) -> NoReturn:
    text = " ".join(str(error).split())
    raise UserError("DataDamaged", f"{file.name} is damaged or cut off: {text}", "Write or upload the file again.") from error


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


@contextmanager
def _opened(file: DataFile) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed."""
    head = _head(file.path, 6)
    if head.startswith(_ZIP):
        raise UserError("FormatUnknown", f"{file.name} is a zip archive", "Unpack it, or compress the file by gzip.")
    opener = next((opener for magic, opener in _DECOMPRESSORS.items() if head.startswith(magic)), None)
    with file.path.open("rb") as plain:
        yield cast(io.BufferedReader, opener(plain)) if opener else plain


def _zstd(stream: BinaryIO) -> io.BufferedReader:
    import pyarrow  # type: ignore[import-untyped]

    return io.BufferedReader(pyarrow.input_stream(stream, compression="zstd"), BLOCK)


_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": lambda stream: io.BufferedReader(gzip.GzipFile(fileobj=stream), BLOCK),
    b"BZh": lambda stream: io.BufferedReader(bz2.BZ2File(stream), BLOCK),
    b"\xfd7zXZ\x00": lambda stream: io.BufferedReader(lzma.LZMAFile(stream), BLOCK),  # noqa: SIM115 - closed by who opened `stream`
    _ZSTD: _zstd,
}


def _text(file: DataFile, stream: io.BufferedReader) -> Iterator[RawRow]:
    head = stream.peek()
    if head.startswith(_UTF16) or b"\x00" in head[:4]:
        raise UserError(
            "SourceNotUtf8",
            f"{file.name} row 1: the file is UTF-16 (or binary), not UTF-8",
            "Save it as UTF-8: iconv -f UTF-16 -t UTF-8.",
        )
    if head.startswith(_BOM):
        stream.read(len(_BOM))
        head = head[len(_BOM) :]
    if head.lstrip().startswith(b"["):
        yield from _array(file, stream)
    elif separator := _separator(file.name, head):
        yield from _csv(file, stream, separator)
    else:
        for number, line in lines(stream):
            if line is None:
                yield RawRow(file.name, number, None, f"the line has more than {LONGEST >> 20} MiB")
            elif line.strip():
                yield parse_line(file.name, number, line)


def _separator(name: str, head: bytes) -> str:
    """What parts the fields if the file is a table; '' if it is none."""
    named = _TABLE.search(name)
    if not named and head.lstrip().startswith(b"{"):
        return ""
    first = head.lstrip(b"\r\n").partition(b"\n")[0].decode("utf-8", "replace")
    known = {separator: len(set(FIELDS).intersection(_names(first.split(separator)))) for separator in SEPARATORS if separator in first}
    best = max(known, key=lambda separator: known[separator], default="")
    if best and known[best]:
        return best
    return "" if not named else "\t" if named[1].lower() == "tsv" else ","


def _names(cells: Iterable[str]) -> list[str]:
    return [cell.strip().strip('"').strip() for cell in cells]


def lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1 and lines; None for a line that is longer than is held, which is passed over."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        whole = len(line) <= LONGEST
        while not whole and not line.endswith(b"\n") and (line := stream.readline(BLOCK)):
            pass
        yield number, line if whole else None


def parse_line(name: str, number: int, line: bytes) -> RawRow:
    """The row that a line of JSON lines is."""
    try:
        return RawRow(name, number, json.loads(line.rstrip().decode("utf-8")))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        reason = f"not JSON: {error}"
    return RawRow(name, number, None, reason, line[:BATCH].decode("utf-8", "replace"))


def _array(file: DataFile, stream: io.BufferedReader) -> Iterator[RawRow]:
    """Elements of a JSON array. What comes after a broken one cannot be read."""
    elements = _Elements(stream)
    number = 0
    try:
        while (value := elements.next()) is not _END:
            number += 1
            yield RawRow(file.name, number, value)
    except (ValueError, RecursionError) as error:
        reason = f"{file.name} row {number + 1}: the JSON array cannot be read on: {error}"
        fix = "Correct it, or write one JSON object a line: then a broken one is left out alone."
        raise UserError("DataInvalid", reason, fix) from error


_END = object()


class _Elements:
    """The elements of a JSON array, decoded one by one from a stream that is read as needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")()
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._ended = self._begun = False
        self._take("[")

    def next(self) -> object:
        """The next element, or _END. Raises ValueError where the text is no JSON array."""
        if self._peek() == "]":
            return _END
        if self._begun:
            self._take(",")
            self._peek()
        self._begun = True
        value, self._at = self._element()
        return value

    def _element(self) -> tuple[object, int]:
        """A value and where it ends: one that reaches the end of what was read may go on."""
        size, reason = BLOCK, ""
        while True:
            try:
                value, end = self._parse(self._text, self._at)
                if end < len(self._text) or self._ended:
                    return value, end
            except json.JSONDecodeError as error:
                reason = error.msg
                if self._ended:
                    raise ValueError(reason) from error
            if len(self._text) - self._at > LONGEST:
                raise ValueError(f"an element has more than {LONGEST >> 20} MiB, or is broken ({reason})")
            self._read(size)
            size = min(2 * size, LONGEST)

    def _peek(self) -> str:
        """The next character that is no white space, '' at the end."""
        blanks = 0
        while True:
            begin, self._at = self._at, cast(re.Match[str], _BLANKS.match(self._text, self._at)).end()
            blanks += self._at - begin
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            if blanks > LONGEST:
                raise ValueError(f"nothing but blanks in more than {LONGEST >> 20} MiB")
            self._read(BLOCK)

    def _take(self, wanted: str) -> None:
        if (found := self._peek()) != wanted:
            raise ValueError(f"{wanted!r} is missing before {found!r}" if found else "it ends too early")
        self._at += 1

    def _read(self, size: int) -> None:
        content = self._stream.read(size)
        self._ended = not content
        self._text = self._text[self._at :] + self._decode.decode(content, final=self._ended)
        self._at = 0


def _csv(file: DataFile, stream: io.BufferedReader, separator: str) -> Iterator[RawRow]:
    """Rows of a table with a line of names, numbered by the line on which each begins."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(_decoded(file, stream), delimiter=separator, strict=True)
    number = 1
    try:
        names = _names(next((cells for cells in reader if cells), []))
        _refuse_twice(file.name, names)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            if cells:
                yield _table_row(file.name, number, names, cells)
    except csv.Error as error:
        reason = f"{file.name} row {number}: the table cannot be read on: {error}"
        raise UserError("DataInvalid", reason, "Correct the quotation marks of the row that begins on that line.") from error


def _refuse_twice(name: str, names: list[str]) -> None:
    twice = next((field for field in FIELDS if names.count(field) > 1), None)
    if twice:
        raise UserError("DataInvalid", f"{name} row 1: two columns are called {twice}", "Give one of them another name.")


def _decoded(file: DataFile, stream: io.BufferedReader) -> Iterator[str]:
    for number, line in lines(stream):
        if line is None:
            raise UserError("DataInvalid", f"{file.name} row {number}: the line has more than {LONGEST >> 20} MiB", "Split it.")
        yield line.decode("utf-8", "surrogateescape")


def _table_row(name: str, number: int, names: list[str], cells: list[str]) -> RawRow:
    text = ", ".join(cells)[:BATCH].encode("utf-8", "replace").decode()
    if len(cells) != len(names):
        return RawRow(name, number, None, f"{len(cells)} fields, but the first line names {len(names)}", text)
    if any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell):
        return RawRow(name, number, None, "not UTF-8 (Excel: save as CSV UTF-8)", text)
    value: dict[str, object] = dict(zip(names, cells, strict=True))
    if "messages" in value:
        try:
            value["messages"] = json.loads(str(value["messages"]))
        except (ValueError, RecursionError) as error:
            return RawRow(name, number, None, f"field messages is not JSON: {error}", text)
    value |= {column: turns for column in COMPARED if (turns := _turns(str(value.get(column))))}
    return RawRow(name, number, value)


def _turns(cell: str) -> list[object]:
    """The turns that a cell holds as JSON; none where it holds the text of an answer."""
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(turn, dict) for turn in found) else []


def _parquet(file: DataFile) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file.path, memory_map=False, buffer_size=BLOCK) as table:
            names = [name for name in table.schema_arrow.names if name in FIELDS] or table.schema_arrow.names
            number = 0
            for batch in table.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(file.name, number, value)
    except pyarrow.ArrowInvalid as error:
        _damaged(file, error)
