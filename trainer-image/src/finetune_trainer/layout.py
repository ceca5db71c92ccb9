"""Folders of the work volume and how one comes to count.

Invariant: a folder counts only with its COMMIT, which is written last, after every file was flushed, listed with size
and sha256 in the folder's manifest, and the folder renamed to its final name. A crash at any moment leaves either the
complete folder or none that counts. One process at a time fills a folder: the others wait for its lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.exits import about

COMMIT = "COMMIT"
READABLE = 0o644  # safetensors writes for its own user alone; what serves may run as another
MANIFEST = "MANIFEST.json"
MODEL_MANIFEST = MANIFEST
DATA_MANIFEST = "manifest.json"
ARTIFACT_MANIFEST = "revision.json"
CHECKPOINT_MANIFEST = MANIFEST
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # what is not there; any other OSError is the volume's
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Corrupt(Exception):
    """A folder that claims to be complete is not what its manifest says."""


@dataclass
class Transaction:
    """A folder being filled: write into `folder`, put what the manifest should say besides the files into `facts`,
    the bytes of files that must be in it, by relative name, into `expected`, and names of files that only tell of the others,
    and are no part of the digest, into `aside`."""

    folder: Path
    facts: dict[str, object] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)


def checkpoints(attempt: Path) -> Path:
    """The folder of an attempt's checkpoints."""
    return attempt / "checkpoints"


def checkpoint(attempt: Path, step: int) -> Path:
    """The folder of the checkpoint at `step`."""
    return checkpoints(attempt) / f"step-{step:08d}"


def artifact(attempt: Path) -> Path:
    """The folder of what an attempt leaves for serving."""
    return attempt / "artifact"


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, so that their names outlast a loss of power."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush(path.parent)


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock of `final` (a file beside it), waiting for whoever holds it; it ends with its holder's process.
    What was true of `final` before may not be true any more: look again."""
    with about(f"while the lock of {final} was made"):
        make_folder(final.parent)
        path = final.parent / f".{final.name}.lock"
        descriptor = _lock(path)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def is_locked(final: Path) -> bool:
    """Whether somebody holds the lock of `final`, or may: a volume without locks does not tell."""
    try:
        with (final.parent / f".{final.name}.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def transaction(final: Path, manifest: str = MANIFEST, *, has_lock: bool = False) -> Iterator[Transaction]:
    """Yield a temporary folder beside `final`; on success it becomes `final` with manifest and COMMIT, on failure it
    goes. A `final` that does not count is replaced; one that counts is replaced too (the caller decided). `final` is
    locked meanwhile; `has_lock` where the caller has it `locked`. Raises Corrupt if an expected file is not there."""
    with nullcontext() if has_lock else locked(final), about(f"while {final} was written"), _transaction(final, manifest) as work:
        yield work


@contextmanager
def _transaction(final: Path, manifest: str) -> Iterator[Transaction]:
    temporary = final.parent / f".{final.name}.tmp-{secrets.token_hex(8)}"
    for stale in final.parent.glob(f".{final.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    try:
        work = Transaction(temporary)
        yield work
        table = file_table(temporary, manifest)
        _check_expected(work, table)
        digest = table_digest({name: facts for name, facts in table.items() if name not in work.aside})
        write_json(temporary / manifest, {**work.facts, "files": table, "digest": digest})
        for path in _all_files(temporary):
            path.chmod(READABLE)
            flush(path)
        for folder in sorted({path.parent for path in _all_files(temporary)}):
            flush(folder)
        if final.exists():
            (final / COMMIT).unlink(missing_ok=True)
            shutil.rmtree(final)
        temporary.rename(final)
        flush(final.parent)
        _write_commit(final, manifest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_complete(folder: Path) -> bool:
    """Whether `folder` carries its COMMIT."""
    return (folder / COMMIT).is_file()


def verify(folder: Path, manifest: str = MANIFEST) -> dict[str, object]:
    """The manifest of a complete folder after checking every file's size and sha256. Raises Corrupt."""
    document = read_manifest(folder, manifest)
    files = document.get("files")
    if not isinstance(files, dict):
        raise Corrupt(f"{folder / manifest} lists no files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise Corrupt(f"{path} is not what {manifest} says")
    return document


def is_of(folder: Path, key: str) -> bool:
    """Whether `folder` is complete and intact, and what its manifest calls its key is this one."""
    try:
        return is_complete(folder) and read_manifest(folder).get("key") == key and bool(verify(folder))
    except Corrupt as error:
        print(f"not used: {error}", flush=True)
        return False


def remove(folder: Path) -> None:
    """Remove a folder; it does not count from the first moment."""
    (folder / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def read_manifest(folder: Path, manifest: str = MANIFEST) -> dict[str, object]:
    """The manifest of a complete folder, checked against COMMIT but not file by file. Raises Corrupt; OSError where the volume fails."""
    try:
        text = (folder / manifest).read_bytes()
        commit = json.loads((folder / COMMIT).read_text())
        document = json.loads(text)
    except (*MISSING, ValueError) as error:
        raise Corrupt(f"{folder} is not complete: {error}") from error
    if not isinstance(document, dict) or commit.get("manifest") != hashlib.sha256(text).hexdigest():
        raise Corrupt(f"{folder / manifest} is not what was committed")
    return document


def file_table(folder: Path, *exclude: str) -> dict[str, dict[str, object]]:
    """Relative name → {bytes, sha256} of every file under `folder` but `exclude` and COMMIT."""
    skip = {*exclude, COMMIT}
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in _all_files(folder)
        if str(path.relative_to(folder)) not in skip
    }


def table_digest(table: dict[str, dict[str, object]]) -> str:
    """One digest of a file table, independent of order: `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(folders: Iterable[Path]) -> int:
    """Bytes of all files in these folders; none of a folder that is not there."""
    return sum(path.stat().st_size for folder in folders for path in _all_files(folder))


def write_json(path: Path, document: object) -> None:
    """Write indented JSON with sorted keys and a closing newline."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def flush(path: Path) -> None:
    """Have a file's content, or a folder's names, written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(path: Path) -> int:
    """A descriptor that holds the lock file `path`, made where it is not there. A volume without locks is told of and gone on with."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, READABLE)
        try:
            _flock(descriptor, path)
            if _is_open_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for {path}: another process fills this folder", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"{path} is not locked, this volume has no locks: {error}", flush=True)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the open file: the holder before removes its lock file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _check_expected(work: Transaction, table: dict[str, dict[str, object]]) -> None:
    for name, size in work.expected.items():
        found = table.get(name, {}).get("bytes")
        if found != size:
            raise Corrupt(f"{name} should have {size:,} bytes and has {found if found is not None else 'none'}")


def _write_commit(folder: Path, manifest: str) -> None:
    digest = hashlib.sha256((folder / manifest).read_bytes()).hexdigest()
    temporary = folder / f".{COMMIT}.tmp"
    temporary.write_text(json.dumps({"manifest": digest}) + "\n")
    flush(temporary)
    temporary.rename(folder / COMMIT)
    flush(folder)


def _all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
