"""Stage prepare: sources → rows → splits → tokens, with every complaint by row number and the run's estimate.

Invariant: what train reads and what evaluate is sealed with are disjoint by content hash, and checked to be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finetune_trainer import estimate, hardware, layout, schedule
from finetune_trainer.config import PROMPT_METHODS, DataConfig, MethodConfig, PromptConfig, RunConfig, SourceConfig, need
from finetune_trainer.data import arrays, formats, preference, quality, report, sources
from finetune_trainer.data.formats import Rejected
from finetune_trainer.data.templates import ChatEncoder, Encoded, prove
from finetune_trainer.exits import Infrastructure, JsonObject, TrainerError, UserError, raise_volume_failure
from finetune_trainer.methods import PREFERENCE, require_fitting, require_supported
from finetune_trainer.progress import Progress, serving

SHOWN_INVALID = 10
PROVEN_ROWS = 64


@dataclass(frozen=True)
class Loaded:
    """Rows by split before tokenising, with what was left out."""

    splits: quality.Splits
    rejected: list[Rejected]
    read: int
    duplicates: int
    min_response: int
    warnings: list[str]


def main(config: RunConfig) -> JsonObject:
    """Prepare `config.data` into its folder, or verify what is there; returns the stage's result."""
    data = need(config.data, "data")
    require_supported(config)
    progress = Progress("prepare")
    with serving(progress):
        found = prepared(data.path)
        if found is None:
            with layout.locked(data.path):
                found = prepared(data.path) or _prepare(config, data, progress)
        return found


def prepared(folder: Path) -> JsonObject | None:
    """The result of a data folder that is complete and intact, else None."""
    if not layout.is_complete(folder):
        return None
    try:
        return _result(layout.verify(folder, layout.DATA_MANIFEST))
    except (layout.Corrupt, FileNotFoundError) as error:
        print(f"prepared again: {error}", flush=True)
        return None


def load_tokenizer(folder: Path, allow_remote_code: bool) -> object:
    """The tokenizer of a fetched model. Raises Infrastructure if the folder does not count, UserError if it is no
    tokenizer, OSError where the volume fails."""
    if not layout.is_complete(folder):
        raise Infrastructure("ModelMissing", f"{folder} is not a complete model folder", "It is fetched again on the next attempt.")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=allow_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise_volume_failure(error)
        raise UserError("TokenizerInvalid", f"the model's tokenizer does not load: {error}", "Check the model's files.") from error


def _prepare(config: RunConfig, data: DataConfig, progress: Progress) -> JsonObject:
    progress.update(state="loading")
    loaded = load_rows(data, need(config.method, "method"))
    _refuse_too_many(loaded, data.quality.max_invalid_percent)
    progress.update(state="tokenizing", percent=20)
    tokenizer = load_tokenizer(config.model.path, config.model.allow_remote_code)
    chat = ChatEncoder(tokenizer)
    encoder = preference.PairEncoder(chat) if need(config.method, "method").objective == "DPO" else chat
    encoded, rejected, too_long = encode(config, loaded.splits, encoder)
    loaded.rejected.extend(rejected)
    _refuse_too_many(loaded, data.quality.max_invalid_percent)
    if not encoded["train"]:
        raise UserError(
            "NoTrainingRows",
            f"no row is left to train on: {loaded.read} read, {len(loaded.rejected)} invalid, {too_long} too long; "
            + _first_reasons(loaded.rejected),
            "Correct the rows, or loosen data.quality.",
        )
    sample = encoded["train"][:PROVEN_ROWS]
    prove([conversation for item in sample for conversation in item.conversations()], chat, tokenizer)
    progress.update(state="writing", percent=80)
    facts = _facts(config, loaded, encoded, too_long)
    with layout.transaction(data.path, layout.DATA_MANIFEST, has_lock=True) as work:
        _write(work.folder, encoded, facts, sample[0], tokenizer)
        work.facts.update(facts)
    progress.update(state="done", percent=100)
    return _result(layout.read_manifest(data.path, layout.DATA_MANIFEST))


def load_rows(data: DataConfig, method: MethodConfig) -> Loaded:
    """Read, convert, clean, deduplicate and split the sources."""
    rejected: list[Rejected] = []
    read = 0
    by_split: quality.Splits = {"train": [], "validation": [], "test": []}
    for name, source in _sources(data):
        raw = sources.read(source)
        wanted = formats.detect(source.source, raw) if source.format == "Auto" else source.format
        require_fitting(method, source.model_copy(update={"format": wanted}))
        good, bad = preference.convert(raw) if wanted == PREFERENCE else formats.convert(raw, wanted)
        read += len(raw)
        rejected += bad
        by_split[name] += good
    if not read:
        raise UserError("DataEmpty", f"{data.train.source} has no rows", "Write one JSON object a line.")
    minimum = data.quality.min_response_characters
    if minimum is None:
        minimum = quality.choose_min_response(by_split["train"])
    duplicates = 0
    for name in by_split:
        by_split[name], short = quality.long_enough(by_split[name], minimum)
        rejected += short
        if data.quality.deduplicate:
            by_split[name], count = quality.deduplicate(by_split[name])
            duplicates += count
    carve = tuple(name for name in ("test", "validation") if getattr(data, name) is None)
    carved = quality.split(by_split["train"], data.split, carve)
    splits = {"train": carved["train"], **{n: carved[n] if n in carve else by_split[n] for n in ("validation", "test")}}
    leaked = quality.keep_apart(splits)
    return Loaded(splits, rejected, read, duplicates + leaked, minimum, _warnings(splits, leaked))


def encode(
    config: RunConfig, splits: quality.Splits, encoder: ChatEncoder | preference.PairEncoder
) -> tuple[dict[str, list[Encoded]], list[Rejected], int]:  # fmt: skip
    """Tokenise every split; rows that the template refuses are rejected, rows that are too long treated as asked."""
    limits = [need(config.training, "training").max_sequence_length, need(config.data, "data").quality.max_tokens]
    limit = min(value for value in limits if value is not None)
    policy = need(config.data, "data").quality.on_too_long
    result: dict[str, list[Encoded]] = {}
    rejected: list[Rejected] = []
    too_long = 0
    for name, rows in splits.items():
        result[name] = []
        for row in rows:
            try:
                item = encoder.encode(row)
            except formats.RowError as error:
                rejected.append(Rejected(row.source, row.row, str(error)))
                continue
            if item.longest > limit:
                too_long += 1
                kept = _shorten(item, limit, policy)
                result[name] += [kept] if kept else []
            else:
                result[name].append(item)
    return result, rejected, too_long


def _shorten(item: Encoded, limit: int, policy: str) -> Encoded | None:
    where = f"row {item.row.row} of {item.row.source} has {item.longest} tokens, more than {limit}"
    if policy == "Fail":
        raise UserError("RowTooLong", where, "Shorten it, raise the limit, or set data.quality.onTooLong to Drop.")
    shortened = item.shortened(limit)
    return None if policy == "Drop" or not shortened.teaches() else shortened


def _sources(data: DataConfig) -> list[tuple[str, SourceConfig]]:
    found = [("train", data.train), ("validation", data.validation), ("test", data.test)]
    return [(name, source) for name, source in found if source is not None]


def _warnings(splits: quality.Splits, leaked: int) -> list[str]:
    found = [f"{leaked} rows were in more than one split and were taken out of the earlier one"] if leaked else []
    if len(splits["train"]) < 50:
        found.append(f"only {len(splits['train'])} training rows: expect little")
    found += [f"there are no {name} rows" for name in ("validation", "test") if not splits[name]]
    return found


def _first_reasons(rejected: Sequence[Rejected], count: int = 5) -> str:
    return "; ".join(f"{item.source} row {item.row}: {item.reason}" for item in rejected[:count])


def _refuse_too_many(loaded: Loaded, limit: float) -> None:
    share = 100 * len(loaded.rejected) / max(1, loaded.read)
    if share > limit:
        raise UserError(
            "TooManyInvalidRows",
            f"{len(loaded.rejected)} of {loaded.read} rows ({share:.1f} %) are invalid, more than "
            f"maxInvalidPercent {limit:g}: {_first_reasons(loaded.rejected)}",
            "Correct the rows, or raise data.quality.maxInvalidPercent.",
        )


def _facts(config: RunConfig, loaded: Loaded, encoded: dict[str, list[Encoded]], too_long: int) -> JsonObject:
    from finetune_trainer.train import outline

    training, compute, method = need(config.training, "training"), need(config.compute, "compute"), need(config.method, "method")
    train = encoded["train"]
    tokens = sum(len(item.ids) for item in train)
    step_tokens = schedule.tokens_per_step(tokens, len(train), training.tokens_per_step)
    per_epoch = schedule.steps_per_epoch(tokens, len(train), step_tokens)
    longest = max((_width(item, method) for item in train), default=1)
    passes = max(longest, min(hardware.micro_batch_tokens(training, compute), step_tokens))
    bf16 = hardware.uses_bf16(training, compute)
    forecast = estimate.estimate(outline.count(config.model, method), method, compute, tokens, training.epochs, passes, bf16)
    warnings = loaded.warnings + ([f"{too_long} rows were too long (onTooLong)"] if too_long else [])
    return {
        "rows": {
            "read": loaded.read,
            "invalid": len(loaded.rejected),
            "duplicate": loaded.duplicates,
            "tooLong": too_long,
            **{name: len(items) for name, items in encoded.items()},
        },
        "tokens": {"train": tokens, "supervised": sum(sum(item.mask) for item in train)},
        "tokensPerStep": step_tokens,
        "minResponseCharacters": loaded.min_response,
        "stepsPerEpoch": per_epoch,
        "totalSteps": schedule.total_steps(per_epoch, training.epochs),
        "invalid": [asdict(item) for item in loaded.rejected[:1000]],
        "warnings": warnings,
        "estimate": {**forecast, "longest": longest},
        "model": str(config.model.path.name),
    }


def _width(item: Encoded, method: MethodConfig) -> int:
    """Tokens that a row takes of a pass: its conversations as long as the longest, a trained prompt before each."""
    virtual = (method.prompt or PromptConfig()).virtual_tokens if method.type in PROMPT_METHODS else 0
    return len(item.conversations()) * (item.longest + virtual)


def _write(folder: Path, encoded: dict[str, list[Encoded]], facts: JsonObject, sample: Encoded, tokenizer: object) -> None:
    save = preference.save if isinstance(sample, preference.EncodedPair) else arrays.save
    for split in ("train", "validation"):
        save(folder, split, encoded[split])
    hashes = sorted({item.row.digest for item in encoded["train"]})
    sealed = {item.row.digest for item in encoded["test"]}
    if sealed & set(hashes):
        raise TrainerError("SplitsOverlap", "a test row is also a training row")
    (folder / "train-hashes.txt").write_text("".join(f"{digest}\n" for digest in hashes))
    with (folder / "test.jsonl").open("w") as stream:
        for item in encoded["test"]:
            line = {"id": item.row.digest, "messages": list(item.row.messages[:-1]), "reference": item.row.response}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    decode = tokenizer.decode  # type: ignore[attr-defined]
    parts = [(token, supervised) for token, supervised in zip(sample.ids, sample.mask, strict=True)]
    document = {
        **facts,
        "lengths": {name: report.histogram(len(item.ids) for item in items) for name, items in encoded.items()},
        "example": {
            "text": decode([token for token, _ in parts]),
            "supervised": decode([token for token, supervised in parts if supervised]),
        },
    }
    layout.write_json(folder / "report.json", document)
    (folder / "report.html").write_text(report.render(document))


def _result(manifest: dict[str, object]) -> JsonObject:
    names = ("digest", "rows", "tokens", "tokensPerStep", "minResponseCharacters", "stepsPerEpoch", "totalSteps")
    invalid = manifest["invalid"]
    assert isinstance(invalid, list)
    return {
        "stage": "prepare",
        **{name: manifest[name] for name in names},
        "invalid": invalid[:SHOWN_INVALID],
        "warnings": manifest["warnings"],
        "estimate": manifest["estimate"],
    }
