"""Sources → conversations by split: read, checked, scanned, cleaned, deduplicated, split, mixed.

Invariant: no content is in two splits, and where near-duplicates are dropped no row is like one of another split. The
sealed test split comes first: what is like it leaves validation and training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

from finetune_trainer.config import DataConfig, MethodConfig, SourceConfig
from finetune_trainer.data import formats, near, quality, reading
from finetune_trainer.data.formats import Rejected, RowError
from finetune_trainer.data.language import Languages
from finetune_trainer.data.ledger import Kind, Ledger
from finetune_trainer.data.personal import Scan, redacted
from finetune_trainer.data.reading import DataFile, RawRow
from finetune_trainer.data.store import Record, RowStore
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.methods import require_fitting

PROBED = 200  # rows that tell a file's format
SAMPLED = 20_000  # rows that tell near-duplicates' boilerplate
SEALED_FIRST = ("test", "validation", "train")
Splits = dict[str, list[Record]]
Files = Mapping[str, Sequence[tuple[SourceConfig, DataFile]]]


@dataclass
class Loaded:
    """Rows before they are tokenised, by use and then by split, with what was left out and found on the way."""

    store: RowStore
    ledger: Ledger
    uses: Splits = field(default_factory=dict)
    splits: Splits = field(default_factory=dict)
    read: int = 0
    min_response: int = 0
    labels: bool = False
    warnings: list[str] = field(default_factory=list)
    sources: list[JsonObject] = field(default_factory=list)

    def drop(self, kind: Kind, record: Record, reason: str) -> None:
        """Count a row that is left out."""
        self.ledger.add(kind, Rejected(record.source, record.row, reason), lambda: spoken(next(self.store.rows([record]))))


def spoken(row: formats.Row) -> str:
    """A conversation in one line."""
    return " → ".join(message["content"] for message in row.messages if message["role"] != "system")


def load(data: DataConfig, method: MethodConfig, files: Files, store: RowStore) -> Loaded:
    """Read `files`, by use (train, validation, test, mix-0 …), for `method`: the good rows, none like another. How they are split is no
    part of it. Raises UserError where nothing can be made of them."""
    loaded = Loaded(store, Ledger())
    answers = quality.Answers()
    scan, languages = Scan(data.quality.personal_data), Languages(data.quality.languages, data.quality.language_percent)

    def checked(row: formats.Row) -> formats.Row:
        return scan.apply(languages.check(_not_repetitive(row, data.quality.max_repetition_percent)))

    shown = redacted if data.quality.personal_data == "Redact" else str
    order = list(dict.fromkeys((*SEALED_FIRST, *files)))
    rows: Splits = {name: [] for name in order}
    for use, found in files.items():
        for source, file in found:
            raws, form = _opened(source, file, method)
            counted = answers if use == "train" else None
            before = loaded.read
            rows[use] += _rows(loaded, raws, form, checked, counted, shown)
            loaded.sources.append({"source": file.name, "use": use, "format": form or "–", "rows": loaded.read - before})
    if not loaded.read:
        raise UserError("DataEmpty", f"{data.train.name} has no rows", reading.ONE_A_LINE)
    loaded.warnings += scan.warnings()
    loaded.labels = answers.closed
    minimum = data.quality.min_response_characters
    loaded.min_response = answers.min_response if minimum is None else minimum
    for name in order:
        rows[name] = _clean(loaded, rows[name], deduplicate=data.quality.deduplicate)
    if data.quality.near_duplicates == "Drop":
        _drop_alike(loaded, rows, order, data.quality.near_duplicate_percent)
    loaded.uses = rows
    return loaded


def _opened(source: SourceConfig, file: DataFile, method: MethodConfig) -> tuple[Iterator[RawRow], str]:
    """The rows of a file and the format that they have, '' where there are none. Raises UserError for one that `method` does not learn
    from."""
    file.bring()
    raws = reading.read(file)
    probe = list(islice(raws, PROBED))
    if not probe:
        return raws, ""
    wanted = formats.detect(file.name, probe) if source.format == "Auto" else source.format
    require_fitting(method, file.name, wanted)
    return chain(probe, raws), wanted


def _rows(
    loaded: Loaded, raws: Iterator[RawRow], wanted: str, checked: Callable[[formats.Row], formats.Row], answers: quality.Answers | None,
    shown: Callable[[str], str],
) -> Iterator[Record]:  # fmt: skip
    """The good rows of a file, as `checked` gives them; the others go to the ledger, as `shown` gives their text."""
    for raw in raws:
        loaded.read += 1
        try:
            row = checked(formats.convert(raw, wanted))
        except RowError as error:
            loaded.ledger.add("Invalid", Rejected(raw.source, raw.row, str(error)), partial(_written, raw, shown))
            continue
        if answers is not None and not row.plain:
            answers.add(row.response)
        yield loaded.store.add(row)


def _not_repetitive(row: formats.Row, limit: float) -> formats.Row:
    share = quality.repetition(row.response)
    if share > limit:
        raise RowError(f"{row.learnt} repeats itself: {share:.0f} % of its trigrams were there before, more than {limit:g} %")
    return row


def _written(raw: RawRow, shown: Callable[[str], str]) -> str:
    """A raw row as text that can be written, whatever was escaped in it."""
    text = raw.text or json.dumps(raw.value, ensure_ascii=False, default=str)
    return shown(text.encode("utf-8", "replace").decode())


def _clean(loaded: Loaded, records: list[Record], *, deduplicate: bool) -> list[Record]:
    """The records whose answer (or text) is long enough, each content once."""
    minimum = loaded.min_response
    for record in records:
        if record.characters < minimum:
            learnt = next(loaded.store.rows([record])).learnt
            loaded.drop("Invalid", record, f"{learnt} has {record.characters} characters, fewer than {minimum}")
    good = [record for record in records if record.characters >= minimum]
    if not deduplicate:
        return good
    good, repeats = quality.deduplicate(good)
    for record, first in repeats:
        loaded.drop("Duplicate", record, f"a repetition: of row {first.row} of {first.source}")
    return good


def _drop_alike(loaded: Loaded, rows: Splits, order: Sequence[str], percent: float) -> None:
    """Take out every row that is like one before it; of two splits the later in `order` loses it."""
    every = [record for name in order for record in rows[name]]
    sample = every[:: max(1, len(every) // SAMPLED)]
    alike = near.find(loaded.store.rows(every), len(every), loaded.store.rows(sample), percent)
    for later, earlier in sorted(alike.items()):
        first = every[earlier]
        loaded.drop("NearDuplicate", every[later], f"near-duplicate: of row {first.row} of {first.source}")
    dropped = {id(every[index]) for index in alike}
    for name in order:
        rows[name] = [record for record in rows[name] if id(record) not in dropped]


def split(loaded: Loaded, data: DataConfig) -> None:
    """Make the three splits: given, or carved out of the training rows; then what is mixed into training."""
    rows, order = loaded.uses, tuple(loaded.uses)
    carve = tuple(name for name in ("test", "validation") if getattr(data, name) is None)
    pool = rows["train"]
    labels = [record.label if loaded.labels else "" for record in pool]
    carved = quality.stratified(pool, labels, data.split, carve)
    rows = {**rows, "train": carved["train"], **{name: carved[name] for name in carve}}
    leaked = quality.keep_apart(rows, order)
    for record, owner in leaked:
        loaded.drop("Duplicate", record, f"a repetition: it is also in {owner}")
    if leaked:
        loaded.warnings.append(f"{len(leaked):,} rows were in more than one split and were taken out of the earlier one")
    own = len(rows["train"])
    for index, mix in enumerate(data.mix):
        wanted, found = round(own * mix.percent / 100), rows[f"mix-{index}"]
        rows["train"] = rows["train"] + quality.sample(found, wanted, data.split.seed)
        if len(found) < wanted:
            loaded.warnings.append(f"data.mix: {mix.name} has {len(found):,} rows that can be used, {wanted:,} were asked for")
    loaded.splits = {name: rows[name] for name in ("train", "validation", "test")}


def require_test(loaded: Loaded, data: DataConfig) -> None:
    """Refuse a test split that was asked for and would be empty: nothing could be scored after all the training."""
    splits = loaded.splits
    if splits["test"] or (data.test is None and not data.split.test):
        return
    counts = loaded.ledger.counts
    repeated = counts["Duplicate"] + counts["NearDuplicate"]
    where = data.test.name if data.test else f"data.split.test {data.split.test:g} of {data.train.name}"
    kept = sum(map(len, splits.values()))
    why = (
        f"of {loaded.read:,} rows read {counts['Invalid']:,} are invalid, {repeated:,} repeat another and {kept:,} are left; "
        f"{loaded.ledger.first_example() or 'there are too few rows'}"
    )
    if data.test and not any(source["rows"] for source in loaded.sources if source["use"] == "test"):
        why = "it has no rows"
    raise UserError(
        "TestSplitEmpty",
        f"{where}: the test split would be empty: {why}",
        "Give more different rows or a data.test, or set data.split.test to 0 and no evaluation.",
    )
