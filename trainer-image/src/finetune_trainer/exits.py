"""Why a stage ended: the error tree, its exit codes and the termination message.

TrainerError (1, error)
├── UserError (20, user)                    no retry mends it
│   └── NonFinite (23, nonFinite)           loss or gradients stayed non-finite
├── OutOfMemory (21, outOfMemory)           CUDA or host allocation failed
├── Stalled (22, stalled)                   the watchdog saw no step
├── Infrastructure (24, infrastructure)     disk, volume, peer or network
└── Interrupted (25, interrupted)           stopped on request, a checkpoint is saved

Invariant: whatever escapes a stage passes `classify` exactly once, at the process's edge.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
MAX_TERMINATION_BYTES = 4096
MORE_MEMORY = (
    "Give the pod more memory (compute.memory) or a larger accelerator; "
    "a training.maxSequenceLength above 2048 (on a GPU 8192) can be lowered."
)

JsonObject = dict[str, object]


class TrainerError(Exception):
    """A failure with a class, a CamelCase reason, words a user can act on, and the fix."""

    code: ClassVar[int] = 1
    failure_class: ClassVar[str] = "error"

    def __init__(self, reason: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fix = fix

    def describe(self) -> JsonObject:
        """The `error` block of the termination message."""
        return {"class": self.failure_class, "reason": self.reason, "message": self.message, "fix": self.fix}


class UserError(TrainerError):
    """Configuration or data that no retry mends."""

    code = 20
    failure_class = "user"


class OutOfMemory(TrainerError):
    """A CUDA or host allocation failed."""

    code = 21
    failure_class = "outOfMemory"


class Stalled(TrainerError):
    """No step was finished for `stallSeconds`."""

    code = 22
    failure_class = "stalled"


class NonFinite(UserError):
    """Loss or gradients stayed non-finite."""

    code = 23
    failure_class = "nonFinite"


class Infrastructure(TrainerError):
    """Disk full, volume read-only or missing, a peer lost, the network."""

    code = 24
    failure_class = "infrastructure"


class Interrupted(TrainerError):
    """Stopped on SIGTERM."""

    code = 25
    failure_class = "interrupted"


BY_CODE: dict[int, type[TrainerError]] = {
    kind.code: kind for kind in (TrainerError, UserError, OutOfMemory, Stalled, NonFinite, Infrastructure, Interrupted)
}

_VOLUME_ERRNOS = {
    errno.ENOSPC: ("DiskFull", "Raise spec.storage.size."),
    errno.EDQUOT: ("DiskFull", "Raise spec.storage.size."),
    errno.EROFS: (
        "VolumeReadOnly",
        "Look at the volume's events; it may have been remounted after an I/O error.",
    ),
    errno.EIO: ("VolumeError", "Look at the volume's events and at the node's disk."),
    errno.EREMOTEIO: ("VolumeError", "Look at the volume's events and at its file server."),
    errno.ESTALE: ("VolumeError", "The file server lost the volume; it is tried again."),
    errno.EACCES: ("VolumeNotWritable", "The volume must be writable for group 10001 (fsGroup)."),
    errno.ECONNREFUSED: ("NetworkError", ""),
    errno.ECONNRESET: ("NetworkError", ""),
    errno.ETIMEDOUT: ("NetworkError", ""),
    errno.EHOSTUNREACH: ("NetworkError", ""),
    errno.ENETUNREACH: ("NetworkError", ""),
}

_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_ALLOCATION = ("can't allocate memory", "out of memory", "_status_alloc_failed")

_PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "timed out waiting",
    "gloo connectfullmesh failed",
    "nccl",
    "no socket",
    "failed to recv",
    "socket timeout",
    "socket closed",
    "tcpstore",
)


@contextmanager
def about(doing: str) -> Iterator[None]:
    """Errors out of this block say what was being done: those of the system name no path where a file was open already."""
    try:
        yield
    except Exception as error:
        error.add_note(doing)
        raise


def classify(error: BaseException) -> TrainerError:
    """The TrainerError that `error` stands for; what nothing matches is an unclassified `error`."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, ValidationError):
        return UserError("ConfigurationInvalid", explain_validation(error), "Correct the named fields.")
    if isinstance(error, MemoryError) or _is_allocation_failure(error):
        return OutOfMemory(
            "OutOfMemory",
            _one_line(error) or "memory ran out",
            MORE_MEMORY,
        )
    if (number := volume_errno(error)) is not None:
        reason, fix = _VOLUME_ERRNOS[number]
        return Infrastructure(reason, _one_line(error), fix)
    if _is_peer_failure(error):
        return Infrastructure("PeerLost", f"another rank went away: {_one_line(error)}", "See the other pods for the cause.")
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("Interrupted", "stopped on request")
    return TrainerError(type(error).__name__, _one_line(error) or type(error).__name__)


def raise_volume_failure(error: BaseException) -> None:
    """Raise the OSError of a volume or the network that `error` is or came from, for `classify`; else return."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _VOLUME_ERRNOS:
            raise link
        link = link.__cause__ or link.__context__


def explain_validation(error: ValidationError) -> str:
    """One line: each wrong field by its path with what is wrong about it (first eight)."""
    parts = [f"{'.'.join(str(p) for p in item['loc']) or 'configuration'}: {item['msg']}" for item in error.errors()[:8]]
    return "; ".join(parts)


def write_termination(result: JsonObject, path: str | os.PathLike[str] | None = None) -> None:
    """Write `result` as JSON of at most 4 KiB; lists and long strings shrink until it fits. Never raises OSError:
    where the log cannot be written (outside a pod) the result still stands in the logs."""
    target = Path(path or os.environ.get(TERMINATION_LOG, "/dev/termination-log"))
    text = shrink(result)
    print(text, flush=True)
    try:
        target.write_text(text)
    except OSError as failure:
        print(f"termination message not written to {target}: {failure}", flush=True)


def shrink(result: JsonObject, limit: int = MAX_TERMINATION_BYTES) -> str:
    """`result` as JSON of at most `limit` bytes."""
    for longest, items in ((2000, 50), (1000, 10), (500, 10), (300, 5), (150, 3), (80, 1), (40, 0)):
        text = json.dumps(_trimmed(result, longest, items), allow_nan=False, ensure_ascii=False)
        if len(text.encode()) <= limit:
            return text
    return json.dumps({"stage": result.get("stage"), "note": "the result did not fit into 4 KiB"})


def _trimmed(value: object, longest: int, items: int) -> object:
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= longest else text[: longest - 1] + "…"
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _trimmed(item, longest, items) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_trimmed(item, longest, items) for item in value[:items]]
    return value


def _one_line(error: BaseException) -> str:
    """The error's words, with what was being done."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return " ".join(f"{str(error)[:900]}{notes}".split())[:1200]


def _is_allocation_failure(error: BaseException) -> bool:
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or (isinstance(error, RuntimeError) and any(words in text for words in _ALLOCATION))


def volume_errno(error: BaseException) -> int | None:
    """The errno of a volume or the network: the error's own, or one that a library in Rust or C++ tells in words."""
    if isinstance(error, OSError) and error.errno in _VOLUME_ERRNOS:
        return error.errno
    told = _OS_ERROR.search(str(error))
    if told and int(told[1]) in _VOLUME_ERRNOS:
        return int(told[1])
    return next((number for number in (errno.ENOSPC, errno.EROFS) if os.strerror(number).lower() in str(error).lower()), None)


def _is_peer_failure(error: BaseException) -> bool:
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _PEER_LOST)
