"""Files elsewhere: what their content is, without bringing it where that is known.

A record beside the downloads says which content a version of a file had (its ETag and size, or a data set's commit), by sha256. As long as
the server names the same version, the content is known and comes only when somebody reads it. Where a server names
none, or another, the file is downloaded.
Invariant: a file that was brought has the sha256 that was told before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from finetune_trainer import layout
from finetune_trainer.data.reading import DataFile, sha256
from finetune_trainer.exits import Infrastructure
from finetune_trainer.transfer import Broken, Unchanged, Version


@dataclass(frozen=True)
class Remote:
    """Something elsewhere: what it is known by, the name that complaints call it by, whether it still is of a version, and how it is
    downloaded."""

    key: str
    name: str
    unchanged: Unchanged
    download: Callable[[], tuple[Version, list[DataFile]]]


@dataclass(frozen=True)
class _Known:
    version: Version
    files: tuple[DataFile, ...]


class Downloads:
    """Downloaded files in `folder`, and records of what they were in `records`, which may outlive them."""

    def __init__(self, folder: Path, records: Path) -> None:
        self.folder = folder
        self._records = records
        for needed in (folder, records):
            needed.mkdir(parents=True, exist_ok=True)

    def target(self, key: str) -> Path:
        """Where what is known by this key is downloaded to."""
        return self.folder / _id(key)

    def files(self, remote: Remote) -> list[DataFile]:
        """The files of `remote`, each with its sha256; downloaded where their content is not known."""
        known = self._recall(remote.key)
        if known is None or not _unchanged(remote, known.version):
            return self._download(remote)
        return [replace(file, bring=partial(self._bring, remote, known, file)) for file in known.files]

    def keep_only(self, files: Sequence[DataFile]) -> None:
        """Remove what was downloaded for others than `files`."""
        wanted = {self._top(file) for file in files if file.path.is_relative_to(self.folder)}
        for path in self.folder.iterdir():
            if path.name.partition(".")[0] not in wanted:
                _remove(path)

    def _download(self, remote: Remote) -> list[DataFile]:
        version, found = remote.download()
        files = [replace(file, sha256=sha256(file)) for file in found]
        if version.tag:
            self._remember(remote, _Known(version, tuple(files)))
        return files

    def _bring(self, remote: Remote, known: _Known, file: DataFile) -> None:
        if file.path.is_file() and layout.sha256_file(file.path) == file.sha256:
            return
        _remove(self.folder / self._top(file))
        if self._download(remote) != list(known.files):
            raise Infrastructure("SourceChanged", f"{remote.name} changed while it was prepared", "It is prepared again.")

    def _top(self, file: DataFile) -> str:
        """The name in the folder under which the file is."""
        return file.path.relative_to(self.folder).parts[0]

    def _recall(self, key: str) -> _Known | None:
        try:
            record = json.loads(self._record(key).read_text())
            files = tuple(DataFile(file["name"], self.folder / file["path"], file["sha256"]) for file in record["files"])
            return _Known(Version(record["tag"], record["size"]), files)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, remote: Remote, known: _Known) -> None:
        files = [{"name": file.name, "path": os.path.relpath(file.path, self.folder), "sha256": file.sha256} for file in known.files]
        record = self._record(remote.key)
        temporary = record.with_suffix(".tmp")
        layout.write_json(temporary, {"name": remote.name, **known.version._asdict(), "files": files})
        temporary.replace(record)

    def _record(self, key: str) -> Path:
        return self._records / f"{_id(key)}.json"


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _unchanged(remote: Remote, version: Version) -> bool:
    try:
        return remote.unchanged(version)
    except Broken as error:
        print(f"{remote.name}: {error}; asking for all of it", flush=True)
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
