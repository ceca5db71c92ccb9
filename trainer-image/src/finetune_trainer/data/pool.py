"""The rows that reading, checking and comparing left: kept for the next revision that asks for the same of the same files.

Invariant: a pool that counts (`layout`) is whole, and gives what `loading.load` would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from finetune_trainer import layout
from finetune_trainer.data.ledger import Ledger
from finetune_trainer.data.loading import Loaded, Splits
from finetune_trainer.data.store import Record, RowStore

ROWS, RECORDS, FACTS = "rows", "records.npy", "loaded.json"
CHUNK = 4096
_RECORD = np.dtype("i4,i4,i8,V32,i8,i4,i8,i8")  # use, source, row, digest, characters, label, offset, size


def kept(folder: Path, key: str, load: Callable[[RowStore], Loaded]) -> Loaded:
    """The pool in `folder` if it is of this key, else what `load` puts into a store, which takes its place. The caller has the
    folder locked, and closes the store."""
    if layout.is_of(folder, key):
        print(f"{folder}: the rows are those of another revision", flush=True)
        return _restored(folder)
    layout.remove(folder)
    with layout.transaction(folder, has_lock=True) as work:
        store = RowStore(work.folder / ROWS)
        try:
            loaded = load(store)
            _save(loaded, work.folder)
        except BaseException:
            store.close()
            raise
        work.facts["key"] = key
    return loaded


def _save(loaded: Loaded, folder: Path) -> None:
    loaded.store.flush()
    sources = _numbers(record.source for record in _every(loaded))
    labels = _numbers(record.label for record in _every(loaded)) if loaded.labels else {}
    packed = (_packed(use, record, sources, labels) for use, records in enumerate(loaded.uses.values()) for record in records)
    np.save(folder / RECORDS, np.fromiter(packed, _RECORD))
    facts = {name: getattr(loaded, name) for name in ("read", "min_response", "labels", "warnings", "sources")}
    names = {"uses": list(loaded.uses), "names": list(sources), "answers": list(labels) or [""]}
    layout.write_json(folder / FACTS, {"facts": facts, "ledger": loaded.ledger.state(), **names})


def _every(loaded: Loaded) -> Iterator[Record]:
    return chain.from_iterable(loaded.uses.values())


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _packed(use: int, record: Record, sources: dict[str, int], labels: dict[str, int]) -> tuple[object, ...]:
    """A record as numbers; one label stands for all where they are not asked for."""
    digest, label = np.void(bytes.fromhex(record.digest)), labels.get(record.label, 0)
    return use, sources[record.source], record.row, digest, record.characters, label, record.offset, record.size


def _restored(folder: Path) -> Loaded:
    document = json.loads((folder / FACTS).read_text())
    uses: Splits = {name: [] for name in document["uses"]}
    lists, names, answers = list(uses.values()), document["names"], document["answers"]
    table = np.load(folder / RECORDS, mmap_mode="r")
    for start in range(0, len(table), CHUNK):
        for use, source, row, digest, characters, label, offset, size in table[start : start + CHUNK].tolist():
            lists[use].append(Record(names[source], row, digest.hex(), characters, answers[label], offset, size))
    return Loaded(RowStore(folder / ROWS), Ledger.of(document["ledger"]), uses, **document["facts"])
