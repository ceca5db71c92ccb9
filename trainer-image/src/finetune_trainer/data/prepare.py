"""Stage prepare: sources → rows → splits → tokens, with every complaint by row number and the run's estimate.

Rows are on disk from the moment they are read: memory grows by a small record a row. What another revision prepared
from the same content under the same settings is taken over (`reuse`): all of it, the rows before they are split
(`pool`), or the tokens of each row (`tokens`).
Invariant: what train reads and what evaluate is sealed with are disjoint by content hash, and checked to be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetune_trainer import advice as said
from finetune_trainer import compare, estimate, hardware, layout, schedule
from finetune_trainer.compare import Option
from finetune_trainer.config import (
    PROMPT_METHODS,
    ComputeConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
    need,
)
from finetune_trainer.data import advice, loading, origins, pool, quality, report, reuse, solved, sources, tokens
from finetune_trainer.data.encoders import RowEncoder
from finetune_trainer.data.encoding import Encoding
from finetune_trainer.data.loading import Files, Loaded, Splits
from finetune_trainer.data.reading import sha256
from finetune_trainer.data.remote import Downloads
from finetune_trainer.estimate import Outline
from finetune_trainer.exits import Infrastructure, JsonObject, TrainerError, UserError, raise_volume_failure
from finetune_trainer.methods import require_supported
from finetune_trainer.progress import Progress, serving

CACHE = "cache"
SHOWN_INVALID = 10
LONGER = "Raise training.maxSequenceLength, or shorten the rows (data.quality.onTooLong: Truncate cuts them)."


def main(config: RunConfig) -> JsonObject:
    """Prepare `config.data` into its folder, or verify what is there; returns the stage's result."""
    data = need(config.data, "data")
    require_supported(config)
    progress = Progress("prepare")
    with serving(progress):
        found = prepared(data.path)
        if found is None:
            cache = data.path.parent / CACHE
            with layout.locked(data.path), layout.locked(cache):
                found = prepared(data.path) or _prepare(config, data, cache, progress)
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
        reason = f"the model's tokenizer does not load: {' '.join(str(error).split())[:300]}"
        raise UserError("TokenizerInvalid", reason, "Check that the model's tokenizer files (tokenizer.json) are all there.") from error


def _prepare(config: RunConfig, data: DataConfig, cache: Path, progress: Progress) -> JsonObject:
    """Fill the locked folder of `data` by way of the locked `cache`, which all revisions share."""
    progress.update(state="loading")
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(hardware.cpu_limit()))  # nothing is forked here
    encoder = RowEncoder(load_tokenizer(config.model.path, config.model.allow_remote_code))
    encoder.expect(source.format for source in (data.train, data.validation, data.test, *data.mix) if source is not None)
    outline = _outline(config)
    downloads = Downloads(cache / "downloads", cache / "records")
    files = find_files(data, downloads)
    key = reuse.key(config, files)
    with layout.transaction(data.path, layout.DATA_MANIFEST, has_lock=True) as work:
        content = reuse.take_over(key, data.path, work.folder)
        if content is None:
            content = _make(config, files, encoder, outline.vocabulary, cache, work.folder, progress)
        facts = _facts(config, content, outline)
        document = {**content, **facts, "finetune": _title(config)}
        layout.write_json(work.folder / "report.json", document)
        (work.folder / "report.html").write_text(report.render(document))
        work.aside |= {"report.json", "report.html"}  # they tell of this run, too: the same data have one digest
        work.aside.add(solved.FILE)  # it follows from the others, and data that an older image prepared are the same without it
        work.facts.update(facts, key=key)
    downloads.keep_only(())
    progress.update(state="done", percent=100)
    return _result(layout.read_manifest(data.path, layout.DATA_MANIFEST))


def _outline(config: RunConfig) -> Outline:
    from finetune_trainer.train import outline

    return outline.count(config.model, need(config.method, "method"))


def _title(config: RunConfig) -> str:
    owner = config.finetune
    return f"{owner.namespace}/{owner.name}, revision {owner.revision}"


def find_files(data: DataConfig, downloads: Downloads) -> Files:
    """The files of every source by use: train, validation, test, mix-0 …, each with its sha256; what was downloaded for other data is
    removed."""
    named: list[tuple[str, SourceConfig | None]] = [("train", data.train), ("validation", data.validation), ("test", data.test)]
    named += [(f"mix-{index}", mix) for index, mix in enumerate(data.mix)]
    found = {
        use: [(source, replace(file, sha256=sha256(file))) for file in sources.files(source, use.partition("-")[0], downloads)]
        for use, source in named
        if source is not None
    }
    downloads.keep_only([file for several in found.values() for _, file in several])
    return found


def _make(
    config: RunConfig, files: Files, encoder: RowEncoder, vocabulary: int, cache: Path, folder: Path, progress: Progress
) -> JsonObject:  # fmt: skip
    """Fill `folder` with arrays, sealed rows and hashes; returns what the data and the objective alone decide."""
    data, method = need(config.data, "data"), need(config.method, "method")
    loaded = pool.kept(cache / "rows", reuse.rows_key(config, files), lambda store: loading.load(data, method, files, store))
    with closing(loaded.store):
        _refuse_too_many(loaded, data.quality.max_invalid_percent)
        loading.split(loaded, data)
        loading.require_test(loaded, data)
        progress.update(state="tokenizing", percent=20)
        with tokens.kept(cache / "tokens", reuse.tokens_key(config), pairs=method.objective == "DPO") as known:
            return _write(folder, Encoding(config, loaded, encoder, vocabulary, known, progress), loaded, data)


def _write(folder: Path, encoding: Encoding, loaded: Loaded, data: DataConfig) -> JsonObject:
    sealed: set[str] = set()
    lengths: dict[str, Sequence[int]] = {}
    answers = {name: quality.Answers() for name in ("train", "test")}
    choice = solved.Choice(loaded, data.split.seed, encoding.limit)
    plain = True
    with (folder / "test.jsonl").open("w") as stream:
        counted = []
        for item in encoding.rows("test"):
            sealed.add(item.row.digest)
            counted.append(len(item.ids))
            answers["test"].add(item.row.response)
            line = {"id": item.row.digest, "messages": list(item.row.messages[:-1]), "reference": item.row.response}
            line |= {"schema": item.row.schema} if item.row.schema else {}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        lengths["test"] = counted
    hashes: set[str] = set()
    with encoding.writer(folder, "train") as train, origins.written(folder, "train") as named:
        for item in encoding.rows("train"):
            train.add(item)
            named.add(item.row)
            hashes.add(item.row.digest)
            answers["train"].add(item.row.response)
            choice.add(item)
            plain = plain and item.row.plain
    with encoding.writer(folder, "validation") as validation, origins.written(folder, "validation") as named:
        for item in encoding.rows("validation"):
            validation.add(item)
            named.add(item.row)
    lengths |= {"train": train.lengths, "validation": validation.lengths}
    if sealed & hashes:
        raise TrainerError("SplitsOverlap", "a test row is also a training row")
    with (folder / "train-hashes.txt").open("w") as stream:
        stream.writelines(f"{digest}\n" for digest in sorted(hashes))
    choice.write(folder, encoding.count)
    _refuse_too_many(loaded, data.quality.max_invalid_percent)
    _require_rows(loaded, encoding, lengths)
    warnings = [*loaded.warnings, *_warnings(lengths, encoding.too_long)]
    if loaded.labels and (unknown := answers["test"].without(answers["train"])):
        warnings.append(f"labels of the test split that no training row has: {', '.join(unknown[:5])}")
    known = answers["train"]
    labels = known.labels if loaded.labels else {}
    kind = {"task": advice.task(labels, plain=plain, reasoned=known.reasoned), "labels": labels}
    return {**_content(loaded, encoding, lengths, {"train": sum(train.lengths), "supervised": train.supervised}, warnings), **kind}


def _content(
    loaded: Loaded, encoding: Encoding, lengths: dict[str, Sequence[int]], tokens: dict[str, int], warnings: list[str]
) -> JsonObject:
    counts = loaded.ledger.counts
    return {
        "rows": {
            "read": loaded.read,
            "invalid": counts["Invalid"],
            "duplicate": counts["Duplicate"],
            "nearDuplicate": counts["NearDuplicate"],
            "tooLong": encoding.too_long,
            **{name: len(lengths[name]) for name in ("train", "validation", "test")},
        },
        "tokens": tokens,
        "longest": encoding.longest,
        "minResponseCharacters": loaded.min_response,
        "invalid": [asdict(item) for item in loaded.ledger.invalid],
        "leftOut": loaded.ledger.groups(),
        "lengths": {name: report.histogram(values) for name, values in lengths.items()},
        "examples": encoding.shown,
        "sources": loaded.sources,
        "dataWarnings": warnings,
    }


def _warnings(lengths: dict[str, Sequence[int]], too_long: int) -> list[str]:
    found = [f"there are no {name} rows" for name in ("validation", "test") if not lengths[name]]
    return found + ([f"{too_long:,} rows were too long (onTooLong)"] if too_long else [])


def _require_rows(loaded: Loaded, encoding: Encoding, lengths: dict[str, Sequence[int]]) -> None:
    splits: Splits = loaded.splits
    fix = LONGER if encoding.too_long else "Correct the rows, or loosen data.quality."
    if not lengths["train"]:
        raise UserError(
            "NoTrainingRows",
            f"no row is left to train on: {loaded.read} read, {loaded.ledger.counts['Invalid']} invalid, {encoding.too_long} too long; "
            + loaded.ledger.first_example(),
            fix,
        )
    if splits["test"] and not lengths["test"]:
        raise UserError(
            "TestSplitEmpty",
            f"none of the {len(splits['test'])} test rows can be used: {loaded.ledger.first_example()}",
            fix,
        )


def _refuse_too_many(loaded: Loaded, limit: float) -> None:
    invalid = loaded.ledger.counts["Invalid"]
    share = 100 * invalid / max(1, loaded.read)
    if share > limit:
        raise UserError(
            "TooManyInvalidRows",
            f"{invalid} of {loaded.read} rows ({share:.1f} %) are invalid, more than "
            f"maxInvalidPercent {limit:g}: {loaded.ledger.first_reasons()}",
            "Correct the rows, or raise data.quality.maxInvalidPercent.",
        )


def side_by_side(
    model: ModelConfig, asked: MethodConfig, training: TrainingConfig, compute: ComputeConfig, outline: Outline, rows: int, tokens: int,
    longest: int,
) -> list[Option]:  # fmt: skip
    """The methods for a model (whose `outline` is that of the one asked for) and so many rows and tokens, as `forecast` has them."""
    from finetune_trainer.train import outline as outlines

    def taken(method: MethodConfig) -> tuple[int, JsonObject]:
        counted = outline if method == asked else outlines.count(model, method)
        estimated = forecast(method, training, compute, counted, rows, tokens, longest)["estimate"]
        assert isinstance(estimated, dict)
        return counted.trained, estimated

    return compare.options(asked, compute, taken)


def _facts(config: RunConfig, content: dict[str, Any], outline: Outline) -> JsonObject:
    """What the manifest says: of the data, and of the run that this configuration makes of them."""
    training, compute, method = need(config.training, "training"), need(config.compute, "compute"), need(config.method, "method")
    rows, tokens = content["rows"]["train"], content["tokens"]["train"]
    warnings = [*estimate.warnings(outline, method, hardware.uses_bf16(training, compute)), *content["dataWarnings"]]
    options = side_by_side(config.model, method, training, compute, outline, rows, tokens, content["longest"])
    return {
        **{name: content[name] for name in ("rows", "tokens", "minResponseCharacters", "invalid")},
        "warnings": warnings,
        "advice": said.told(advice.of(content, options, compute.accelerator)),
        "methods": compare.told(options),
        "accelerator": compute.accelerator,
        **forecast(method, training, compute, outline, rows, tokens, content["longest"]),
        "model": str(config.model.path.name),
    }


def forecast(
    method: MethodConfig, training: TrainingConfig, compute: ComputeConfig, outline: Outline, rows: int, tokens: int, longest: int
) -> JsonObject:  # fmt: skip
    """Steps and estimate of a run over so many `rows` and `tokens` an epoch, whose longest conversation has `longest` tokens."""
    longest = _width(longest, method)
    step_tokens = schedule.tokens_per_step(tokens, rows, training.tokens_per_step)
    per_epoch = schedule.steps_per_epoch(tokens, rows, step_tokens)
    passes = max(longest, min(hardware.micro_batch_tokens(training, compute), step_tokens))
    bf16 = hardware.uses_bf16(training, compute)
    found = estimate.estimate(outline, method, compute, tokens, training.epochs, passes, bf16, training.gradient_checkpointing, longest)
    return {
        "tokensPerStep": step_tokens,
        "stepsPerEpoch": per_epoch,
        "totalSteps": schedule.total_steps(per_epoch, training.epochs),
        "estimate": {**found, "longest": longest},
    }


def _width(tokens: int, method: MethodConfig) -> int:
    """Tokens that a row takes of a pass whose longest conversation has so many: a trained prompt before each, a pair's both as long."""
    virtual = (method.prompt or PromptConfig()).virtual_tokens if method.type in PROMPT_METHODS else 0
    return (2 if method.objective == "DPO" else 1) * (tokens + virtual)


def _result(manifest: dict[str, object]) -> JsonObject:
    names = ("digest", "rows", "tokens", "tokensPerStep", "minResponseCharacters", "stepsPerEpoch", "totalSteps")
    invalid = manifest["invalid"]
    assert isinstance(invalid, list)
    return {
        "stage": "prepare",
        **{name: manifest[name] for name in names},
        "invalid": invalid[:SHOWN_INVALID],
        "warnings": manifest["warnings"],
        "advice": manifest.get("advice") or [],
        "estimate": manifest["estimate"],
    }
