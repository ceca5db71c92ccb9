"""What a change of settings or of data does again, and what it does not: rows before they are split, and their tokens, are kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer import layout
from finetune_trainer.config import RunConfig
from finetune_trainer.data import loading, prepare, reuse
from finetune_trainer.data.reading import DataFile
from finetune_trainer.data.templates import ChatEncoder
from finetune_trainer.exits import Interrupted

from tests.trainer.support import CONTEXT, EXAMPLES, make_config, rows, write_rows

Config = dict[str, Any]
PERSONAL = [{"instruction": f"Who sells the lamp {n}?", "output": f"Ask shop{n}@example.org about it."} for n in range(3)]
LABELLED = [{"input": f"{word} thing {n}", "output": ("good", "bad")[n % 2]} for n, word in enumerate(("red", "blue", "big", "odd") * 15)]


@dataclass
class Done:
    """How often rows were read, and how many were encoded."""

    read: int = 0
    encoded: int = 0


@dataclass
class Volume:
    """A work volume on which revisions are prepared, with the count of what the last one did."""

    folder: Path
    model: Path
    values: list[Any]
    done: Done = field(default_factory=Done)
    revisions: int = 0

    def prepare(self, **overrides: Any) -> dict[str, Any]:
        """The next revision: its result."""
        self.revisions += 1
        self.done.read = self.done.encoded = 0
        return dict(prepare.main(self.config(f"{self.revisions:08x}", **overrides)))

    def config(self, revision: str, **overrides: Any) -> RunConfig:
        self.folder.mkdir(exist_ok=True)
        source = write_rows(self.folder / "rows.jsonl", self.values)
        overrides = {"model__path": str(self.model), "data__path": str(self.folder / "data" / revision), **overrides}
        return RunConfig.model_validate(make_config("prepare", self.folder, self.model, source, **overrides))


@pytest.fixture
def volume(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Volume]:
    """Makes volumes that count."""
    done = Done()
    load, encode = loading.load, ChatEncoder.encode_all

    def counted(*arguments: Any) -> Any:
        done.read += 1
        return load(*arguments)

    def counting(self: ChatEncoder, given: Any, **options: Any) -> Any:
        done.encoded += len(given)
        return encode(self, given, **options)

    monkeypatch.setattr(loading, "load", counted)
    monkeypatch.setattr(ChatEncoder, "encode_all", counting)
    return lambda name, values: Volume(tmp_path / name, work / "models" / "tiny", values, done)


def quality(**changes: Any) -> Config:
    return {"minResponseCharacters": 1, **changes}


CHANGES: dict[str, tuple[Config, tuple[int, int]]] = {
    "the split's seed": ({"data__split": {"train": 80, "validation": 10, "test": 10, "seed": 18}}, (0, 0)),
    "the sequence length": ({"training__maxSequenceLength": 128}, (0, 0)),
    "how many tokens a row may have": ({"data__quality": quality(maxTokens=100, onTooLong="Truncate")}, (0, 0)),
    "how many rows may be invalid": ({"data__quality": quality(maxInvalidPercent=50)}, (0, 0)),
    "what is done about personal data": ({"data__quality": quality(personalData="Redact", nearDuplicates="Keep")}, (1, 3)),
    "how short an answer may be": ({"data__quality": quality(minResponseCharacters=3)}, (1, 0)),
    "the tokenizer": ({"model": "another"}, (0, 66)),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_settings_does_again_what_depends_on_it(
    change: Config, expected: tuple[int, int], volume: Any, tmp_path: Path, work: Path
) -> None:  # fmt: skip
    values = [*rows(63), *PERSONAL]
    used = volume("used", values)
    used.prepare(data__quality=quality(nearDuplicates="Keep"))
    assert (used.done.read, used.done.encoded) == (1, 66)
    if change == {"model": "another"}:
        used.model = another_tokenizer(work, tmp_path)
        change = {}
    change = {"data__quality": quality(nearDuplicates="Keep"), **change}
    if "nearDuplicates" not in change["data__quality"]:
        change["data__quality"]["nearDuplicates"] = "Keep"
    result = used.prepare(**change)
    assert (used.done.read, used.done.encoded) == expected
    fresh = volume("fresh", values)
    fresh.model = used.model
    assert fresh.prepare(**change) == result


def another_tokenizer(work: Path, tmp_path: Path) -> Path:
    """The model with a chat template that ends with a blank."""
    folder = tmp_path / "another"
    with layout.transaction(folder) as target:
        for path in (work / "models" / "tiny").iterdir():
            if path.name not in (layout.COMMIT, layout.MANIFEST):
                (target.folder / path.name).write_bytes(path.read_bytes())
        template = target.folder / "chat_template.jinja"
        template.write_text(template.read_text() + "\n")
    return folder


@pytest.fixture
def upgraded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a library one of another version."""
    installed = reuse.version

    def upgrade(library: str) -> None:
        monkeypatch.setattr(reuse, "version", lambda name: "0.0.1" if name == library else installed(name))
        reuse._libraries.cache_clear()

    yield upgrade
    reuse._libraries.cache_clear()


@pytest.mark.parametrize("library", reuse.LIBRARIES)
def test_every_key_is_of_the_version_of(library: str, upgraded: Callable[[str], None], volume: Any) -> None:
    used = volume("used", rows())
    config = used.config("00000001")
    files = {"train": [(config.data.train, DataFile("rows.jsonl", used.folder / "rows.jsonl"))]}
    before = (reuse.key(config, files), reuse.rows_key(config, files), reuse.tokens_key(config))
    upgraded(library)
    after = (reuse.key(config, files), reuse.rows_key(config, files), reuse.tokens_key(config))
    assert not set(before) & set(after)


def test_another_version_of_a_library_does_all_of_it_again(upgraded: Callable[[str], None], volume: Any) -> None:
    used = volume("used", rows())
    used.prepare()
    upgraded("tokenizers")
    used.prepare()
    assert (used.done.read, used.done.encoded) == (1, 64)


DECIDE = ("tokenizer/spiece.model", "tekken.json", "qwen.tiktoken", "sentencepiece.bpe.model", "chat_template.jinja", "tokenization.py")
INDIFFERENT = ("model.safetensors", "model.safetensors.index.json", "vision/model.safetensors", "README.md", "LICENSE", layout.MANIFEST)


@pytest.mark.parametrize("name", [*DECIDE, *INDIFFERENT])
def test_tokens_are_kept_for_the_files_of_the_model_that_may_decide_them(name: str, volume: Any, tmp_path: Path) -> None:
    used = volume("used", rows(1))
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    keys = set()
    for content in ("one", "other"):
        path.write_text(content)
        keys.add(reuse.tokens_key(used.config("00000001", model__path=str(tmp_path / "model"))))
    assert len(keys) == (2 if name in DECIDE else 1)


def test_only_new_rows_are_encoded(volume: Any) -> None:
    used = volume("used", rows(60))
    used.prepare()
    used.values = [*rows(64), *PERSONAL[:1]]
    result = used.prepare()
    assert (used.done.read, used.done.encoded) == (1, 5)
    assert volume("fresh", used.values).prepare() == result
    used.prepare(data__split={"train": 80, "validation": 10, "test": 10, "seed": 18})
    assert (used.done.read, used.done.encoded) == (0, 0)  # rows that were known and rows that were new are known now


ROWS = {
    "labels": (LABELLED, {}),
    "preferences": ((EXAMPLES / "support-tone/train.jsonl").read_text().splitlines(), {"method__objective": "DPO"}),
    "rows with complaints of all kinds": ([*rows(), *rows(3), "{broken", {"instruction": "Go on.", "output": "word " * 300}], {}),
}


@pytest.mark.parametrize(("values", "overrides"), ROWS.values(), ids=ROWS)
def test_what_was_kept_gives_the_same_bytes_and_the_same_report(values: list[Any], overrides: Config, volume: Any) -> None:
    seed = {"data__split": {"train": 80, "validation": 10, "test": 10, "seed": 18}}
    used, fresh = volume("used", values), volume("fresh", values)
    used.prepare(training__maxSequenceLength=1024, **overrides)
    result = used.prepare(training__maxSequenceLength=1024, **overrides, **seed)
    assert used.done.read == 0
    assert fresh.prepare(training__maxSequenceLength=1024, **overrides, **seed) == result
    reports = [(one.folder / "data" / name / "report.json").read_bytes() for one, name in ((used, "00000002"), (fresh, "00000001"))]
    assert reports[0] == reports[1]


def test_a_pod_that_is_stopped_while_it_encodes_does_not_read_again(volume: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used = volume("used", rows())

    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted("Interrupted", "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(ChatEncoder, "encode_all", stop)
        with pytest.raises(Interrupted):
            used.prepare()
    result = used.prepare()
    assert (used.done.read, used.done.encoded) == (0, 64)
    assert volume("fresh", rows()).prepare()["digest"] == result["digest"]


@pytest.mark.parametrize(("stage", "file", "expected"), [("rows", "rows", (1, 0)), ("tokens", "all.tokens.npy", (0, 64))])
def test_a_damaged_stage_is_done_again(stage: str, file: str, expected: tuple[int, int], volume: Any) -> None:
    used = volume("used", rows())
    first = used.prepare()
    path = used.folder / "data" / "cache" / stage / file
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    seed = used.prepare(training__maxSequenceLength=250)
    assert (used.done.read, used.done.encoded) == expected
    assert seed["digest"] == first["digest"]


def test_one_stage_of_each_kind_is_kept(volume: Any) -> None:
    used = volume("used", rows())
    for values in (rows(), rows(60), [*rows(50), *PERSONAL[:1]]):
        used.values = values
        used.prepare()
    cache = used.folder / "data" / "cache"
    assert sorted(path.name for path in cache.iterdir()) == ["downloads", "records", "rows", "tokens"]
    assert len(np.load(cache / "tokens" / "contents.npy")) == 51


def dies(document: Config, fsyncs: int, folder: str) -> None:
    """Prepare in this process, which ends before it flushes a file for the `fsyncs`th time."""
    os.environ.update(FINETUNE_PROGRESS_PORT="0", FINETUNE_TERMINATION_LOG=f"{folder}/termination")
    real, left = layout.flush, iter(range(fsyncs - 1))

    def flush(path: Path) -> None:
        if next(left, None) is None:
            os._exit(7)
        real(path)

    layout.flush = flush
    prepare.main(RunConfig.model_validate(document))


@pytest.mark.parametrize("fsyncs", [1, 4, 7, 12, 15, 20])
def test_a_process_that_dies_at_any_moment_leaves_no_half_stage(fsyncs: int, volume: Any, tmp_path: Path) -> None:
    used = volume("used", rows())
    process = CONTEXT.Process(target=dies, args=(used.config("00000001").model_dump(mode="json", by_alias=True), fsyncs, str(tmp_path)))
    process.start()
    process.join(120)
    assert process.exitcode == 7
    cache = used.folder / "data" / "cache"
    whole = [stage for stage in ("rows", "tokens") if layout.is_complete(cache / stage)]
    for stage in whole:
        layout.verify(cache / stage)
    assert used.prepare()["digest"] == volume("fresh", rows()).prepare()["digest"]
