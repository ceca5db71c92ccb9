"""What another revision of the FineTune prepared from the same data is taken over, not made again.

A key is of the files' content, of the settings that decide what is made of them, of the model's files that may decide its
tokens, and of the code that does it, that of libraries by their versions; fields of training that only use the result
are no part of it. What is prepared altogether has one; so have the rows before they are split, and rows as tokens. Files
are linked, so that they cost no space and outlive the other folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from functools import cache
from importlib.metadata import version
from pathlib import Path

from finetune_trainer import addresses, layout
from finetune_trainer.config import DataConfig, RunConfig, SourceConfig, need
from finetune_trainer.data import reading
from finetune_trainer.data.loading import Files
from finetune_trainer.exits import JsonObject
from finetune_trainer.fetch import KEPT_NAMES

OF_RUN = ("report.json", "report.html")  # what is written anew for each revision
LATER = {"max_tokens", "on_too_long", "max_invalid_percent"}  # settings that look at tokens, or at all of the rows
LIBRARIES = ("transformers", "tokenizers", "jinja2", "rensa", "py3langid", "pyarrow", "numpy")
NO_TOKENIZER = (".safetensors", ".safetensors.index.json", ".md", *KEPT_NAMES, layout.COMMIT, layout.MANIFEST)  # how names end


def key(config: RunConfig, files: Files) -> str:
    """sha256 (hex) of all that decides the prepared content."""
    data = need(config.data, "data")
    return _digest(
        files=_contents(files),
        data=_settings(data),
        longest=need(config.training, "training").max_sequence_length,
        tokens=tokens_key(config),
    )


def rows_key(config: RunConfig, files: Files) -> str:
    """sha256 (hex) of all that decides which rows are left before they are split."""
    quality = need(config.data, "data").quality.model_dump(mode="json", exclude=LATER)
    objective = need(config.method, "method").objective
    formats = {use: [source.format for source, _ in found] for use, found in files.items()}
    return _digest(files=_contents(files), formats=formats, quality=quality, objective=objective)


def _settings(data: DataConfig) -> JsonObject:
    """What is set of the data, each source by what tells it from others."""
    named = {
        use: _source(source) for use, source in (("train", data.train), ("validation", data.validation), ("test", data.test)) if source
    }
    rest = data.model_dump(mode="json", exclude={"path", "train", "validation", "test", "mix"})
    return {**rest, **named, "mix": [_source(mix) for mix in data.mix]}


def _source(source: SourceConfig) -> JsonObject:
    return {**source.model_dump(mode="json"), "source": addresses.identity(source.source)}


def tokens_key(config: RunConfig) -> str:
    """sha256 (hex) of all that decides what a row's tokens are, but the row."""
    return _digest(objective=need(config.method, "method").objective, tokenizer=_tokenizer(config.model.path))


def _digest(**facts: object) -> str:
    return hashlib.sha256(json.dumps({**facts, "code": _code(), "libraries": _libraries()}, sort_keys=True).encode()).hexdigest()


def _contents(files: Files) -> JsonObject:
    return {use: [[file.name, reading.sha256(file)] for _, file in found] for use, found in files.items()}


def _tokenizer(model: Path) -> dict[str, str]:
    """Digests of the model's files that may decide how text becomes tokens: all but weights and words for people."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and not path.name.endswith(NO_TOKENIZER))
    return {str(path.relative_to(model)): layout.sha256_file(path) for path in files}


@cache
def _code() -> str:
    """Digest of this package's own modules."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


@cache
def _libraries() -> dict[str, str]:
    """The versions of what reads rows, compares them, and makes tokens of them."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def take_over(wanted: str, own: Path, folder: Path) -> JsonObject | None:
    """Link the files of a sibling of `own` with this key into `folder`; returns what its data alone decided, or None
    where there is no such folder that is intact."""
    for other in sorted(own.parent.iterdir()):
        if other == own or not layout.is_complete(other):
            continue
        try:
            if layout.read_manifest(other, layout.DATA_MANIFEST).get("key") != wanted:
                continue
            table = layout.verify(other, layout.DATA_MANIFEST)["files"]
            content: JsonObject = json.loads((other / "report.json").read_text())
        except (layout.Corrupt, OSError, ValueError) as error:
            print(f"not taken over: {error}", flush=True)
            continue
        assert isinstance(table, dict)
        for name in table:
            if name not in OF_RUN:
                _link(other / name, folder / name)
        print(f"taken over from {other.name}: the same data, prepared the same way", flush=True)
        return content
    return None


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy on volumes that have none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
