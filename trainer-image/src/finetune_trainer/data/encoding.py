"""Rows of each split → tokens that are proven, none too long; what cannot be learnt from goes to the ledger, and a few are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from finetune_trainer.config import RunConfig, need
from finetune_trainer.data import arrays, preference, quality
from finetune_trainer.data.batches import batches
from finetune_trainer.data.formats import RowError
from finetune_trainer.data.loading import Loaded
from finetune_trainer.data.store import Record
from finetune_trainer.data.templates import ChatEncoder, Encoded, end_tokens, said_control_token, unproven
from finetune_trainer.data.tokens import Tokens
from finetune_trainer.exits import JsonObject, UserError
from finetune_trainer.progress import Progress

SHOWN_ROWS = 10
BATCH, BATCH_BYTES = 512, 1 << 20  # a token takes some 300 bytes while its batch is encoded
UNPROVEN_SHARE = 0.1


@dataclass
class Encoding:
    """Tokenises rows in batches: what the template refuses or the limit forbids goes to the ledger."""

    config: RunConfig
    loaded: Loaded
    chat: ChatEncoder
    vocabulary: int
    known: Tokens
    progress: Progress
    shown: list[JsonObject] = field(default_factory=list)
    too_long: int = 0
    unlike: list[tuple[Record, str]] = field(default_factory=list)  # with the control token that its answer holds, '' for none
    done: int = 0
    longest: int = 0  # tokens of the longest conversation in training

    def __post_init__(self) -> None:
        self._pairs = need(self.config.method, "method").objective == "DPO"
        self._encoder = preference.PairEncoder(self.chat) if self._pairs else self.chat
        self._ends = end_tokens(self.chat.tokenizer)
        data, training = need(self.config.data, "data"), need(self.config.training, "training")
        self._policy = data.quality.on_too_long
        limits = {"training.maxSequenceLength": training.max_sequence_length, "data.quality.maxTokens": data.quality.max_tokens}
        self._limit, self._limited_by = min((value, name) for name, value in limits.items() if value is not None)
        self._all = max(1, sum(map(len, self.loaded.splits.values())))
        train = self.loaded.splits["train"]
        self._wanted = {record.digest for record in quality.sample(train, SHOWN_ROWS, data.split.seed)}

    def writer(self, folder: Path, split: str) -> arrays.Writer:
        """What writes the rows of a split."""
        return (preference.Writer if self._pairs else arrays.Writer)(folder, split)

    def rows(self, split: str) -> Iterator[Encoded]:
        """The rows of a split that can be learnt from, or scored."""
        for records in batches(self.loaded.splits[split], BATCH, lambda record: record.size, BATCH_BYTES):
            for record, item in zip(records, self._encoded(records), strict=True):
                if isinstance(item, RowError):
                    self.loaded.drop("Invalid", record, str(item))
                elif kept := self._shortened(record, item):
                    if split == "train":
                        self._learnt(kept)
                    yield kept
            self.done += len(records)
            self._refuse_unproven()
            self.progress.update(percent=20 + 70 * self.done // self._all)

    def _encoded(self, records: Sequence[Record]) -> list[Encoded | RowError]:
        """The proven tokens of each row, or why there are none; encoded where they are not known."""
        rows, contents = zip(*self.loaded.store.contents(records), strict=True)
        result: list[Encoded | RowError | None] = [*self.known.find(rows, contents)]
        missing = [index for index, item in enumerate(result) if item is None]
        encoded = self._encoder.encode_all([rows[index] for index in missing])
        for index, item in zip(missing, self._proven([records[index] for index in missing], encoded), strict=True):
            result[index] = item
        new = [index for index in missing if isinstance(result[index], Encoded)]
        self.known.add([cast(Encoded, result[index]) for index in new], [contents[index] for index in new])
        return cast(list[Encoded | RowError], result)

    def _proven(self, records: Sequence[Record], encoded: Sequence[Encoded | RowError]) -> Iterator[Encoded | RowError]:
        doubts = iter(unproven([item for item in encoded if isinstance(item, Encoded)], self._ends, self.chat.tokenizer))
        for record, item in zip(records, encoded, strict=True):
            if isinstance(item, Encoded) and next(doubts):
                token = said_control_token(item.row, self._ends, self.chat.tokenizer)
                self.unlike.append((record, token))
                yield RowError(_doubt(token))
            else:
                yield item

    def _shortened(self, record: Record, item: Encoded) -> Encoded | None:
        if (token := max(item.ids)) >= self.vocabulary:
            raise UserError(
                "TokenOutsideVocabulary",
                f"row {record.row} of {record.source}: token {token} ({self.chat.tokenizer.decode([token])!r}) is outside the "
                f"model's vocabulary of {self.vocabulary:,}",
                "Tokenizer and weights do not belong together: use the model's own tokenizer files.",
            )
        if item.longest <= self._limit:
            return item
        where = f"{item.longest:,} tokens, more than {self._limited_by} {self._limit:,}"
        if self._policy == "Fail":
            fix = f"Shorten it, raise {self._limited_by}, or set data.quality.onTooLong to Drop."
            raise UserError("RowTooLong", f"row {record.row} of {record.source} has {where}", fix)
        self.too_long += 1
        shortened = item.shortened(self._limit)
        if self._policy == "Truncate" and shortened.teaches():
            return shortened
        what = "the row is too long" if shortened.teaches() else "the prompt alone is too long"
        self.loaded.drop("TooLong", record, f"{what}: {where}")
        return None

    def _learnt(self, item: Encoded) -> None:
        self.longest = max(self.longest, item.longest)
        if item.row.digest in self._wanted:
            self._wanted.remove(item.row.digest)
            self.shown.append(rendered(item, self.chat.tokenizer))

    def _refuse_unproven(self) -> None:
        if len(self.unlike) > max(self.done, min(self._all, BATCH)) * UNPROVEN_SHARE:
            first, token = self.unlike[0]
            raise UserError(
                "MaskNotProven",
                f"row {first.row} of {first.source}: {_doubt(token)}",
                "Take it out of the answers: the chat template puts it where it belongs."
                if token
                else "The model's chat template is unusual; use another variant of the model.",
            )


def _doubt(token: str) -> str:
    if token:
        return f"its answer holds {token!r}, which the model reads as a control token"
    return "the supervised tokens are not its answer and an end of turn"


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
