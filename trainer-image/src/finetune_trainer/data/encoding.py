"""Rows of each split → tokens that are proven, none too long; what cannot be learnt from goes to the ledger, and a few are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from finetune_trainer.config import RunConfig, need
from finetune_trainer.data import arrays, plain, preference, quality
from finetune_trainer.data.batches import batches
from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.data.formats import Row, RowError
from finetune_trainer.data.loading import Loaded
from finetune_trainer.data.store import Record
from finetune_trainer.data.templates import Encoded, said_control_token
from finetune_trainer.data.tokens import Tokens
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.progress import Progress

SHOWN_ROWS = 10
BATCH, BATCH_BYTES = 512, 1 << 20  # a token takes some 300 bytes while its batch is encoded
# A row of more characters for each token of the limit is too long whatever its tokens: it is not encoded to be left out. Tokenizers have
# longer tokens, of blanks and dashes; four characters is what one has of English, on average.
TOKEN_CHARACTERS = 32
UNPROVEN_SHARE = 0.1


class TooLong(RowError):
    """A row that is not encoded, for it has this many of what the limit forbids."""


class Doubt(NamedTuple):
    """Why a row's mask is not believed, and what helps."""

    reason: str
    fix: str


@dataclass
class Encoding:
    """Tokenises rows in batches: what the template refuses or the limit forbids goes to the ledger."""

    config: RunConfig
    loaded: Loaded
    encoder: RowEncoder
    vocabulary: int
    known: Tokens
    progress: Progress
    shown: list[JsonObject] = field(default_factory=list)
    too_long: int = 0
    unlike: list[tuple[Record, Doubt]] = field(default_factory=list)
    done: int = 0
    longest: int = 0  # tokens of the longest conversation in training

    def __post_init__(self) -> None:
        self._pairs = need(self.config.method, "method").objective == "DPO"
        self._encode = (preference.PairEncoder(self.encoder.chat) if self._pairs else self.encoder).encode_all
        self._tokenizer = self.encoder.tokenizer
        data, training = need(self.config.data, "data"), need(self.config.training, "training")
        self._policy = data.quality.on_too_long
        limits = {"training.maxSequenceLength": training.max_sequence_length, "data.quality.maxTokens": data.quality.max_tokens}
        self.limit, self._limited_by = min((value, name) for name, value in limits.items() if value is not None)
        self._all = max(1, sum(map(len, self.loaded.splits.values())))
        train = self.loaded.splits["train"]
        self._wanted = {record.digest for record in quality.sample(train, SHOWN_ROWS, data.split.seed)}

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def writer(self, folder: Path, split: str) -> arrays.Writer:
        """What writes the rows of a split."""
        return (preference.Writer if self._pairs else arrays.Writer)(folder, split)

    def rows(self, split: str) -> Iterator[Encoded]:
        """The rows of a split that can be learnt from, or scored."""
        for records in batches(self.loaded.splits[split], BATCH, lambda record: record.size, BATCH_BYTES):
            for record, item in zip(records, self._encoded(records), strict=True):
                if isinstance(item, TooLong):
                    self._count_too_long(record, str(item))
                    self.loaded.drop("TooLong", record, f"the row is too long: {item}")
                    continue
                if isinstance(item, RowError):
                    self.loaded.drop("Invalid", record, str(item))
                    continue
                for kept in self._shortened(record, item, split):
                    if split == "train":
                        self._learnt(kept)
                    yield kept
            self.done += len(records)
            self._refuse_unproven()
            self.progress.update(percent=20 + 70 * self.done // self._all)

    def _encoded(self, records: Sequence[Record]) -> list[Encoded | RowError]:
        """The proven tokens of each row, or why there are none; encoded where they are not known."""
        rows, contents = zip(*self.loaded.store.contents(records), strict=True)
        result: list[Encoded | RowError | None] = [
            item or self._hopeless(row) for row, item in zip(rows, self.known.find(rows, contents), strict=True)
        ]
        missing = [index for index, item in enumerate(result) if item is None]
        encoded = self._encode([rows[index] for index in missing])
        for index, item in zip(missing, self._proven([records[index] for index in missing], encoded), strict=True):
            result[index] = item
        new = [index for index in missing if isinstance(result[index], Encoded)]
        self.known.add([cast(Encoded, result[index]) for index in new], [contents[index] for index in new])
        return cast(list[Encoded | RowError], result)

    def _hopeless(self, row: Row) -> TooLong | None:
        """Why a row need not be encoded; what is cut off is encoded first."""
        characters = max(sum(len(message["content"]) for message in messages) for messages in (row.messages, row.rejected))
        if self._policy == "Truncate" or characters <= TOKEN_CHARACTERS * self.limit:
            return None
        return TooLong(f"{characters:,} characters, more than {TOKEN_CHARACTERS} for each token of {self._limited_by} {self.limit:,}")

    def _proven(self, records: Sequence[Record], encoded: Sequence[Encoded | RowError]) -> Iterator[Encoded | RowError]:
        doubts = iter(self.encoder.unproven([item for item in encoded if isinstance(item, Encoded)]))
        for record, item in zip(records, encoded, strict=True):
            if isinstance(item, Encoded) and next(doubts):
                doubt = self._doubt(item.row)
                self.unlike.append((record, doubt))
                yield RowError(doubt.reason)
            else:
                yield item

    def _doubt(self, row: Row) -> Doubt:
        if row.plain:
            return Doubt("field text does not come back from its tokens", "The model's tokenizer cannot write it; use another model.")
        if token := said_control_token(row, self.encoder.ends, self._tokenizer):
            reason = f"its answer holds {token!r}, which the model reads as a control token"
            return Doubt(reason, "Take it out of the answers: the chat template puts it where it belongs.")
        reason = "the supervised tokens are not its answer and an end of turn"
        return Doubt(reason, "The model's chat template is unusual; use another variant of the model.")

    def _shortened(self, record: Record, item: Encoded, split: str) -> Sequence[Encoded]:
        """What is kept of a row, none of it too long; but of the test split a text is kept whole, and read in pieces when it is scored."""
        if (token := max(item.ids)) >= self.vocabulary:
            raise UserError(
                "TokenOutsideVocabulary",
                f"row {record.row} of {record.source}: token {token} ({self._tokenizer.decode([token])!r}) is outside the "
                f"model's vocabulary of {self.vocabulary:,}",
                "Tokenizer and weights do not belong together: use the model's own tokenizer files.",
            )
        if item.longest <= self.limit:
            return [item]
        where = f"{item.longest:,} tokens, more than {self._limited_by} {self.limit:,}"
        self._count_too_long(record, where)
        if item.row.plain and self._policy == "Truncate":
            return [item] if split == "test" else plain.pieces(item, self.limit)
        shortened = item.shortened(self.limit)
        if self._policy == "Truncate" and shortened.teaches():
            return [shortened]
        what = "the row is too long" if shortened.teaches() else "the prompt alone is too long"
        if item.row.plain:
            what = "field text is too long, and data.quality.onTooLong is not Truncate, which cuts it into pieces"
        self.loaded.drop("TooLong", record, f"{what}: {where}")
        return []

    def _count_too_long(self, record: Record, where: str) -> None:
        """Raises UserError where no row may be."""
        if self._policy == "Fail":
            fix = f"Shorten it, raise {self._limited_by}, or set data.quality.onTooLong to Drop."
            raise UserError("RowTooLong", f"row {record.row} of {record.source} has {where}", fix)
        self.too_long += 1

    def _learnt(self, item: Encoded) -> None:
        self.longest = max(self.longest, item.longest)
        if item.row.digest in self._wanted:
            self._wanted.remove(item.row.digest)
            self.shown.append(rendered(item, self._tokenizer))

    def _refuse_unproven(self) -> None:
        if len(self.unlike) > max(self.done, min(self._all, BATCH)) * UNPROVEN_SHARE:
            first, doubt = self.unlike[0]
            raise UserError("MaskNotProven", f"row {first.row} of {first.source}: {doubt.reason}", doubt.fix)


def rendered(item: Encoded, tokenizer: Any) -> JsonObject:
    """A row as the report shows it: stretches of text, each supervised or not."""
    parts: list[tuple[bool, list[int]]] = []
    for token, supervised in zip(item.ids, item.mask, strict=True):
        if not parts or parts[-1][0] != supervised:
            parts.append((supervised, []))
        parts[-1][1].append(token)
    return {
        "source": item.row.source,
        "row": item.row.row,
        "parts": [{"text": tokenizer.decode(tokens), "supervised": supervised} for supervised, tokens in parts],
    }
