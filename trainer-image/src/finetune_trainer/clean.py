"""Stage clean: remove from the work volume what retention no longer keeps.

Invariant: nothing is touched but real folders below the two roots `data` and `revisions`, through no symbolic link; a folder
stops counting before any of its files go, evaluations before the artifact that they are of; what is not there is done.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from finetune_trainer import layout
from finetune_trainer.config import CleanRun
from finetune_trainer.exits import JsonObject, UserError, about

_ATTEMPT = re.compile(r"a(?P<number>\d+)-.+")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Freed:
    """What was removed: folders that were asked for and there, files, and the bytes of these files."""

    folders: int = 0
    files: int = 0
    bytes: int = 0
    kept: list[str] = field(default_factory=list)


def main(config: CleanRun) -> JsonObject:
    """Remove what `config.clean` lists; returns the stage's result. Raises UserError for what is no folder of the volume's own."""
    wanted, freed = config.clean, Freed()
    folders = [*wanted.folders, *_old_checkpoints(wanted.path, wanted.checkpoints_of, wanted.keep, freed)]
    for remove in (_uncommit, partial(_remove, freed=freed)):
        for folder in folders:
            with about(f"while {wanted.path / folder} was removed"):
                remove(wanted.path, folder)
    print(f"removed {freed.folders} folders, {freed.files} files, {freed.bytes:,} bytes", flush=True)
    return {"stage": "clean", "folders": freed.folders, "files": freed.files, "bytes": freed.bytes, "kept": freed.kept}


def _old_checkpoints(root: Path, revisions: tuple[str, ...], keep: int, freed: Freed) -> Iterator[str]:
    """Checkpoint folders of all but the newest attempts. A revision without an artifact may resume: all of it is kept, and told."""
    for revision in revisions:
        with _opened(root, revision) as folder:
            if folder is None:
                continue
            attempts = {name: int(found["number"]) for name in os.listdir(folder) if (found := _ATTEMPT.fullmatch(name))}
            if not any((root / revision / name / "artifact" / layout.COMMIT).is_file() for name in attempts):
                freed.kept.append(f"{revision}: it has no artifact")
                continue
            newest = sorted({*attempts.values()}, reverse=True)[:keep]
            yield from (f"{revision}/{name}/checkpoints" for name, number in sorted(attempts.items()) if number not in newest)


def _uncommit(root: Path, folder: str) -> None:
    """From here on nothing in the folder counts, whenever this ends."""
    with _opened(root, folder) as top:
        if top is None:
            return
        found = [path for path, _, files, _ in os.fwalk(".", dir_fd=top) if layout.COMMIT in files]
        for path in sorted(found, key=lambda path: ("evaluations" not in path.split("/"), path)):
            with _closing(os.open(path, _FOLDER, dir_fd=top)) as holder:
                os.unlink(layout.COMMIT, dir_fd=holder)
                os.fsync(holder)


def _remove(root: Path, folder: str, freed: Freed) -> None:
    """The folder, and what a fill of it that was cut off left beside it."""
    parent, _, name = folder.rpartition("/")
    with _opened(root, parent) as holder:
        if holder is None:
            return
        for entry in sorted(os.listdir(holder)):
            if entry == name or entry.startswith(f".{name}.tmp-"):
                freed.folders += entry == name
                _count(holder, entry, freed)
                shutil.rmtree(entry, dir_fd=holder)
        os.fsync(holder)


def _count(holder: int, entry: str, freed: Freed) -> None:
    for _, _, files, at in os.fwalk(entry, dir_fd=holder):
        for name in files:
            about = os.stat(name, dir_fd=at, follow_symlinks=False)
            freed.files += 1
            freed.bytes += about.st_size if stat.S_ISREG(about.st_mode) else 0


@contextmanager
def _opened(root: Path, folder: str) -> Iterator[int | None]:
    """A descriptor of the folder, None where there is none. Raises UserError for a link or a file on the way to it."""
    with ExitStack() as stack:
        descriptor = stack.enter_context(_closing(os.open(root, _FOLDER)))
        for name in folder.split("/"):
            found = _step(descriptor, name, folder)
            if found is None:
                yield None
                return
            descriptor = stack.enter_context(_closing(found))
        yield descriptor


def _step(parent: int, name: str, folder: str) -> int | None:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        text = f"{folder} is not removed: {name} is a symbolic link or a file, and the volume has folders there"
        raise UserError("NotAFolder", text, "Remove what was put there by hand.") from error


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
