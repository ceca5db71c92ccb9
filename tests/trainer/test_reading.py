"""Files of every kind to rows, in bounded memory, and what cannot be read told by row."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from finetune_trainer.data import formats, reading
from finetune_trainer.data.reading import DataFile, RawRow
from finetune_trainer.exits import UserError

ROWS = [{"input": f"question {n}", "output": f"antwört {n}\nand more"} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target, row_group_size=2)
    return target.getvalue()


def csv(separator: str) -> bytes:
    quoted = [[f'"{row["input"]}"', '"' + row["output"].replace('"', '""') + '"'] for row in ROWS]
    return "\r\n".join(separator.join(cells) for cells in [["input", "output"], *quoted]).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


FILES = {
    "JSON lines": ("x.jsonl", LINES),
    "JSON lines without an end of line": ("x.jsonl", LINES.rstrip()),
    "JSON lines with a byte order mark": ("x.jsonl", b"\xef\xbb\xbf" + LINES),
    "JSON lines of Windows": ("x.jsonl", LINES.replace(b"\n", b"\r\n")),
    "a JSON array": ("x.json", json.dumps(ROWS).encode()),
    "a JSON array over many lines": ("x.json", b"\n " + json.dumps(ROWS, indent=2, ensure_ascii=False).encode() + b"\n"),
    "CSV": ("x.csv", csv(",")),
    "CSV whose name does not say so": ("x", csv(",")),
    "CSV of an Excel with decimal commas": ("x.csv", b"\xef\xbb\xbf" + csv(";")),
    "the same whose name does not say so": ("x", csv(";")),
    "CSV below an empty line": ("x.csv", b"\r\n" + csv(";")),
    "CSV with blanks around its names": ("x.csv", csv(",").replace(b"input,output", b"input, output ", 1)),
    "TSV": ("x.tsv", csv("\t")),
    "TSV that is called CSV": ("x.CSV", csv("\t")),
    "Parquet": ("x.parquet", parquet(ROWS)),
    "Parquet whose name does not say so": ("x", parquet(ROWS)),
    "JSON lines in gzip": ("x.jsonl.gz", gzip.compress(LINES)),
    "CSV in bzip2": ("x.csv.bz2", bz2.compress(csv(","))),
    "a JSON array in xz": ("x.json.xz", lzma.compress(json.dumps(ROWS).encode())),
    "JSON lines in zstd": ("x.jsonl.zst", zstd(LINES)),
}


def read(folder: Path, name: str, content: bytes) -> list[RawRow]:
    (folder / "file").write_bytes(content)
    return list(reading.read(DataFile(name, folder / "file")))


@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("block", [7, reading.BLOCK], ids=["read in small pieces", "read whole"])
def test_rows_come_out_of(name: str, content: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    found = read(tmp_path, name, content)
    assert [raw.value for raw in found] == ROWS
    assert formats.detect(name, found) == "InputOutput"


def test_rows_of_a_table_are_numbered_by_the_line_on_which_they_begin(tmp_path: Path) -> None:
    assert [raw.row for raw in read(tmp_path, "x.csv", csv(","))] == [2, 4, 6, 8, 10]


def test_a_cell_holds_turns_as_json(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    cell = json.dumps(turns).replace('"', '""')
    (good, bad) = read(tmp_path, "x.csv", f'messages\n"{cell}"\nhello\n'.encode())
    assert good.value == {"messages": turns}
    assert (bad.row, bad.error.partition(":")[0]) == (3, "field messages is not JSON")


def test_a_cell_holds_an_answers_text_or_its_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    cell = json.dumps(turns).replace('"', '""')
    content = f'prompt,chosen,rejected\nq,good,5\nq,"[""a""]",[\n,"{cell}","{cell}"\n'
    found = [raw.value for raw in read(tmp_path, "x.csv", content.encode())]
    assert found == [
        {"prompt": "q", "chosen": "good", "rejected": "5"},
        {"prompt": "q", "chosen": '["a"]', "rejected": "["},
        {"prompt": "", "chosen": turns, "rejected": turns},
    ]


def test_the_names_of_a_wide_table_are_found(tmp_path: Path) -> None:
    others = ";".join(f"column {number}" for number in range(200))
    (row,) = read(tmp_path, "x.csv", f"{others};input;output\n{';' * 199};a, b;c\n".encode())
    assert row.value == {**dict.fromkeys(others.split(";"), ""), "input": "a, b", "output": "c"}


def test_a_rows_own_schema_comes_out_of_every_kind_of_file(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "1", "json_schema": '{"type": "integer"}'}
    table = b'prompt,completion,json_schema\na,1,"{""type"": ""integer""}"\n'
    for name, content in {"x.jsonl": json.dumps(row).encode(), "x.csv": table, "x.parquet": parquet([row])}.items():
        assert [raw.value for raw in read(tmp_path, name, content)] == [row], name


def test_words_of_a_first_row_make_no_table_of_json_lines(tmp_path: Path) -> None:
    row = {"prompt": "Which fields are there: input, output, or others?", "completion": "All of these."}
    assert [raw.value for raw in read(tmp_path, "x.jsonl", json.dumps(row).encode())] == [row]


def test_columns_that_nobody_reads_are_left_in_the_file(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "x.parquet", parquet([{"input": "a", "output": "b", "embedding": [0.5] * 10}]))
    assert row.value == {"input": "a", "output": "b"}


BAD_ROWS: dict[str, tuple[str, bytes, dict[int, str]]] = {
    "broken JSON": ("x.jsonl", b'{"a": 1}\n{"a": \n{"a": 3}\n', {2: "not JSON: Expecting value at column 6"}),
    "bytes that are no UTF-8": ("x.jsonl", b'{"a": "\xff"}\n', {1: "not UTF-8: invalid start byte at byte 7"}),
    "too few cells": ("x.csv", b"input,output\na,b\nc\n", {3: "1 fields, but the first line names 2"}),
    "a cell that is no UTF-8": ("x.csv", b"input,output\na,\xff\n", {2: "not UTF-8 (Excel: save as CSV UTF-8)"}),
    "a line that is too long": ("x.jsonl", b'{"a": "' + b"x" * 100 + b'"}\n{"a": 1}\n', {1: "the line has more than 0 MiB"}),
}


@pytest.mark.parametrize(("name", "content", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_is_left_out_for(
    name: str, content: bytes, expected: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(reading, "LONGEST", 64)
    found = read(tmp_path, name, content)
    assert {raw.row: raw.error for raw in found if raw.error} == expected
    assert any(not raw.error for raw in found) or len(found) == 1


BAD_FILES = {
    "UTF-16": ("x.jsonl", LINES.decode().encode("utf-16"), r"x.jsonl row 1: the file is UTF-16 .*iconv|x.jsonl row 1"),
    "UTF-16 without its mark": ("x.jsonl", LINES.decode().encode("utf-16-le"), "x.jsonl row 1: the file is UTF-16"),
    "a zip archive": ("x.zip", b"PK\x03\x04....", "x.zip is a zip archive"),
    "a gzip file that is cut off": ("x.gz", gzip.compress(LINES * 100)[:-20], "x.gz is damaged or cut off"),
    "an xz file with a changed byte": ("x.xz", lzma.compress(LINES)[:40] + b"\0" + lzma.compress(LINES)[41:], "x.xz is damaged or cut off"),
    "a zstd file that is cut off": ("x.zst", zstd(LINES * 100)[:-20], "x.zst is damaged or cut off"),
    "a Parquet file that is cut off": ("x.parquet", parquet(ROWS)[:-20], "x.parquet is damaged or cut off"),
    "an array that is broken": ("x.json", b'[{"a": 1}, {"a": 2}, {"a": }]', "x.json row 3: the JSON array cannot be read on: Exp"),
    "an array that ends too early": ("x.json", b'[{"a": 1}, {"a": 2}', "x.json row 3: the JSON array cannot be read on: it ends too early"),
    "an array without commas": ("x.json", b'[{"a": 1} {"a": 2}]', "row 2: the JSON array cannot be read on: ',' is missing before '{'"),
    "an array with an endless element": (
        "x.json", b'[{"a": "' + b"x" * 10_000_000 + b'"}]', "row 1: the JSON array cannot be read on: an element has more than 2 MiB",
    ),
    "an array of blanks": ("x.json", b"[" + b" \n" * 5_000_000 + b"]", "row 1: the JSON array .*: nothing but blanks in more than 2 MiB"),
    "quotation marks that do not match": ("x.csv", b'input,output\n"a"b,c\n', "x.csv row 2: the table cannot be read on"),
    "quotation marks that stay open": ("x.csv", b'input,output\na,b\n"c,d\ne,f\ng,h\n', "x.csv row 3: the table cannot be read on"),
    "a table that names a column twice": ("x.csv", b"input,output,output\na,b,c\n", "x.csv row 1: two columns are called output"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_is_refused_by_row_that_is(name: str, content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 2 << 20)
    with pytest.raises(UserError, match=words) as found:
        read(tmp_path, name, content)
    assert found.value.fix


def test_blanks_take_no_longer_than_what_is_read(tmp_path: Path) -> None:
    """30 MiB of them, which are taken: character by character it was 1.6 s."""
    began = time.process_time()
    assert [raw.value for raw in read(tmp_path, "x.json", b'[{"a": 1},' + b" " * (30 << 20) + b'{"a": 2}]')] == [{"a": 1}, {"a": 2}]
    assert time.process_time() - began < 0.5


GIGABYTE = """
import resource, sys
from pathlib import Path
from finetune_trainer.data import reading
from finetune_trainer.exits import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    found = [(raw.row, raw.error or raw.value) for raw in reading.read(reading.DataFile(sys.argv[2], Path(sys.argv[1])))]
except UserError as error:
    found = error.message
print(found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
LONG_LINES = {
    "of JSON": ("x", b'{"a": "', b'"}\n{"a": 1}\n', "[(1, 'the line has more than 32 MiB'), (2, {'a': 1})]"),
    "that is an array": ("x", b'[{"a": "', b'"}]\n', "x row 1: the JSON array cannot be read on: an element has more than 32 MiB"),
    "of a table": ("x.csv", b'input,output\na,"', b'"\n', "x.csv row 2: the line has more than 32 MiB"),
}


@pytest.mark.parametrize(("name", "head", "tail", "words"), LONG_LINES.values(), ids=LONG_LINES)
def test_a_line_of_a_gigabyte_takes_little_memory(name: str, head: bytes, tail: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.write(head)
        stream.seek(1 << 30)  # a hole: the file takes no space
        stream.write(tail)
    done = subprocess.run([sys.executable, "-c", GIGABYTE, path, name], check=True, capture_output=True, text=True)
    found, mebibytes = done.stdout.rsplit(" ", 1)
    assert found.startswith(words)
    assert int(mebibytes) < 250
