"""Every change that a process makes below a folder, seen by the kernel before it happens: let through, refused, or never made.

A forked child asks the kernel (seccomp's user notification) to stop it at each system call that changes files, and its parent
decides. So native code is seen like Python's own (safetensors writes from Rust), nothing is loaded into the child, and a kill
comes exactly before the chosen change: what Python or a library still held in buffers is gone. Writes through shared memory maps
are not system calls and not seen; `Volume` (see `volume`) would then differ from the real folder. Linux 5.5 or later.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

KILL: Final = -1
ALLOCATING: Final = frozenset({"create", "write", "mkdir", "link", "symlink", "rename"})  # what a full disk refuses

# the numbers of system calls on x86-64 and on 64-bit ARM, which has no calls without a folder descriptor
CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    "open": (2, None), "creat": (85, None), "openat": (257, 56), "openat2": (437, 437),
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "pwritev2": (328, 287),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47),
    "fsync": (74, 82), "fdatasync": (75, 83), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, None), "unlinkat": (263, 35), "rmdir": (84, None), "mkdir": (83, None), "mkdirat": (258, 34),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
}  # fmt: skip
MACHINES: Final = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}  # column, seccomp's architecture, seccomp's number
RECEIVE, ANSWER, GO_ON = 0xC0502100, 0xC0182101, 1
AT_REMOVEDIR = 0x200

Decide = Callable[[int, "Operation"], int]


@dataclass(frozen=True)
class Operation:
    """One change below the folder: `path` and, of a rename or link, `other` are relative to it; `offset` of a truncation is the size."""

    name: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        details = f" → {self.other}" if self.other else f" {len(self.data)} bytes at {self.offset}" if self.name == "write" else ""
        return f"{self.name} {self.path}{details}"


@dataclass
class Trace:
    """What came of a traced child: the changes it made, the one it was killed before, what it returned or raised."""

    done: list[Operation] = field(default_factory=list)
    killed_before: Operation | None = None
    refused: list[Operation] = field(default_factory=list)
    result: Any = None
    error: dict[str, Any] | None = None


def never(_number: int, _operation: Operation) -> int:
    """Let every change through."""
    return 0


def kill_before(wanted: int) -> Decide:
    """Kill the process before its change number `wanted`, counted from 1."""
    return lambda number, _: KILL if number == wanted else 0


def full_from(wanted: int) -> Decide:
    """From this change on the disk is full: what takes room is refused, what frees it goes on."""
    return lambda number, operation: errno.ENOSPC if number >= wanted and operation.name in ALLOCATING else 0


def read_only_from(wanted: int) -> Decide:
    """From this change on the volume is read-only, as after an error of its disk."""
    return lambda number, _: errno.EROFS if number >= wanted else 0


def broken_at(wanted: int) -> Decide:
    """This one change meets an error of the disk."""
    return lambda number, _: errno.EIO if number == wanted else 0


def traced(folder: Path, work: Callable[[], Any], decide: Decide = never) -> Trace:
    """Run `work` in a child and ask `decide` before each change below `folder`: 0 lets it happen, an errno refuses it, KILL ends
    the child by SIGKILL. What `work` returns must be JSON. Raises RuntimeError where the kernel has no notifications."""
    trace, report = Trace(), bytearray()
    child, ours = _forked(_live, work)
    with closing(ours):
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            os.waitpid(child, 0)
            raise RuntimeError("the kernel gives no notifications of system calls (seccomp, Linux 5.5 or later)")
        try:
            _supervise(descriptors[0], child, os.path.realpath(folder), decide, trace, ours, report)
        finally:
            os.close(descriptors[0])
            os.waitpid(child, 0)
    if trace.killed_before is None:
        said = json.loads(report)
        trace.result, trace.error = said["result"], said["error"]
    return trace


def apart(work: Callable[[], Any]) -> Any:
    """What `work` returns (JSON) in a new process; raises AssertionError with what it raised there."""
    child, ours = _forked(_report, work)
    with closing(ours), ours.makefile("rb") as stream:
        report = stream.read()
    os.waitpid(child, 0)
    said = json.loads(report or b'{"error": {"message": "the process ended without a word"}}')
    if said["error"] is not None:
        raise AssertionError(said["error"]["message"])
    return said["result"]


def _forked(life: Callable[[Callable[[], Any], socket.socket], Any], work: Callable[[], Any]) -> tuple[int, socket.socket]:
    """A child that lives `life(work, channel)` and never returns; its pid, and our end of the channel."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        life(work, theirs)
    theirs.close()
    return child, ours


def _live(work: Callable[[], Any], channel: socket.socket) -> None:
    """Be the traced child: hand the notifications to the parent, and work; it ends here whatever happens."""
    try:
        listener = _listener()
        socket.send_fds(channel, [b"."], [listener] if listener >= 0 else [])
        if listener >= 0:
            os.close(listener)
            _report(work, channel)
    finally:
        os._exit(1)


def _report(work: Callable[[], Any], channel: socket.socket) -> None:
    """Run `work`, say what came of it, and end this process."""
    from finetune_trainer import exits

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    said: dict[str, Any] = {"result": None, "error": None}
    try:
        said["result"] = work()
    except BaseException as error:
        known = exits.classify(error).describe()
        said["error"] = {**known, "message": f"{type(error).__name__}: {error}" if isinstance(error, AssertionError) else known["message"]}
    channel.sendall(json.dumps(said).encode())
    channel.close()
    sys.stderr.flush()
    os._exit(0)


def _listener() -> int:
    """Install the filter in this process; its descriptor of notifications, negative where the kernel refuses."""
    column, architecture, seccomp = MACHINES[platform.machine()]
    numbers = [found[column] for found in CALLS.values() if found[column] is not None]
    load, equal, answer = 0x20, 0x15, 0x06
    notify, allow = 0x7FC00000, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, allow), (load, 0, 0, 0)]
    program += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(answer, 0, 0, allow), (answer, 0, 0, notify)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return int(library.syscall(seccomp, 1, 8, header))  # SECCOMP_SET_MODE_FILTER with a listener


def _supervise(
    listener: int, child: int, root: str, decide: Decide, trace: Trace, channel: socket.socket, report: bytearray
) -> None:  # fmt: skip
    """Answer each notification until the child has ended; its last words are added to `report`."""
    names = {found[MACHINES[platform.machine()][0]]: name for name, found in CALLS.items()}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(channel, select.POLLIN)
    number = 0
    while True:
        events = dict(poll.poll())
        if channel.fileno() in events:
            if not (piece := channel.recv(1 << 16)):
                poll.unregister(channel)
            report += piece
        if not events.get(listener, 0) & select.POLLIN:
            if events.get(listener, 0):
                return
            continue
        message = bytearray(80)
        try:
            fcntl.ioctl(listener, RECEIVE, message)
        except FileNotFoundError:  # the child ended meanwhile
            continue
        identity, caller, _, call, _, _, *arguments = struct.unpack("QIIiIQ6Q", message)
        operation = _Caller(caller, root).operation(names[call], arguments)
        verdict = 0
        if operation is not None:
            number += 1
            verdict = decide(number, operation)
            if verdict == KILL:
                trace.killed_before = operation
                os.kill(child, signal.SIGKILL)
                return
            (trace.refused if verdict else trace.done).append(operation)
        fcntl.ioctl(listener, ANSWER, bytearray(struct.pack("QqiI", identity, 0, -verdict, 0 if verdict else GO_ON)))


class _Caller:
    """The process that waits in a system call, and what it asks for."""

    def __init__(self, pid: int, root: str) -> None:
        self.proc, self.root = f"/proc/{pid}", root

    def operation(self, name: str, arguments: list[int]) -> Operation | None:
        """The change that it is about to make below the root; None where it makes none there. Raises NotImplementedError for a
        call that changes files in a way that cannot be told here."""
        method = getattr(self, f"_{name}", None)
        found = method(*arguments) if method else self._unknown(name, arguments)
        assert found is None or isinstance(found, Operation)
        return found

    def _unknown(self, name: str, arguments: list[int]) -> None:
        if self._of(arguments[0]) is not None:
            raise NotImplementedError(name)

    def _memory(self, address: int, size: int) -> bytes:
        with open(f"{self.proc}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def _text(self, address: int) -> str:
        text = b""
        while b"\0" not in text:
            page = 4096 - (address + len(text)) % 4096
            text += self._memory(address + len(text), page)
        return os.fsdecode(text.partition(b"\0")[0])

    def _at(self, folder: int, address: int) -> str | None:
        """The path below the root that a folder descriptor and a name stand for; None outside of it."""
        base = os.readlink(f"{self.proc}/cwd" if _signed(folder) == -100 else f"{self.proc}/fd/{_signed(folder)}")
        path = os.path.join(base, self._text(address))
        return self._below(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))

    def _of(self, descriptor: int) -> str | None:
        """The path below the root of an open file; None outside of it and for one that has no name any more."""
        path = os.readlink(f"{self.proc}/fd/{_signed(descriptor)}")
        return None if path.endswith(" (deleted)") else self._below(path)

    def _below(self, path: str) -> str | None:
        return os.path.relpath(path, self.root) if f"{path}/".startswith(f"{self.root}/") else None

    def _position(self, descriptor: int, size_of: str) -> int:
        with open(f"{self.proc}/fdinfo/{_signed(descriptor)}") as stream:
            facts = dict(line.split(maxsplit=1) for line in stream.read().splitlines() if " " in line or "\t" in line)
        appends = int(facts["flags:"], 8) & os.O_APPEND
        return os.stat(os.path.join(self.root, size_of)).st_size if appends else int(facts["pos:"])

    def _open(self, path: int, flags: int, *_: int) -> Operation | None:
        return self._openat(-100, path, flags)

    def _creat(self, path: int, *_: int) -> Operation | None:
        return self._openat(-100, path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

    def _openat(self, folder: int, address: int, flags: int, *_: int) -> Operation | None:
        if not flags & (os.O_CREAT | os.O_TRUNC) or (path := self._at(folder, address)) is None:
            return None
        if os.path.lexists(os.path.join(self.root, path)):
            return Operation("truncate", path) if flags & os.O_TRUNC else None
        return Operation("create", path) if flags & os.O_CREAT else None

    def _write(self, descriptor: int, address: int, size: int, *_: int) -> Operation | None:
        return self._written(descriptor, None, [(address, size)])

    def _pwrite64(self, descriptor: int, address: int, size: int, offset: int, *_: int) -> Operation | None:
        return self._written(descriptor, offset, [(address, size)])

    def _writev(self, descriptor: int, vectors: int, count: int, *_: int) -> Operation | None:
        return self._written(descriptor, None, self._vectors(vectors, count))

    def _pwritev(self, descriptor: int, vectors: int, count: int, offset: int, *_: int) -> Operation | None:
        return self._written(descriptor, offset, self._vectors(vectors, count))

    def _vectors(self, address: int, count: int) -> list[tuple[int, int]]:
        return list(struct.iter_unpack("QQ", self._memory(address, 16 * count)))

    def _written(self, descriptor: int, offset: int | None, pieces: list[tuple[int, int]]) -> Operation | None:
        if (path := self._of(descriptor)) is None:
            return None
        start = self._position(descriptor, path) if offset is None else offset
        return Operation("write", path, offset=start, data=b"".join(self._memory(*piece) for piece in pieces))

    def _sendfile(self, out: int, source: int, offset: int, count: int, *_: int) -> Operation | None:
        return self._copied(out, 0, source, offset, count)

    def _copy_file_range(self, source: int, offset: int, out: int, target: int, count: int, *_: int) -> Operation | None:
        return self._copied(out, target, source, offset, count)

    def _copied(self, out: int, target: int, source: int, offset: int, count: int) -> Operation | None:
        """A copy inside the kernel; one of nothing changes nothing."""
        if (path := self._of(out)) is None:
            return None
        begin = self._number(offset) if offset else self._position(source, path)
        with open(f"{self.proc}/fd/{_signed(source)}", "rb") as stream:
            data = os.pread(stream.fileno(), count, begin)
        start = self._number(target) if target else self._position(out, path)
        return Operation("write", path, offset=start, data=data) if data else None

    def _number(self, address: int) -> int:
        return int.from_bytes(self._memory(address, 8), "little", signed=True)

    def _truncate(self, path: int, size: int, *_: int) -> Operation | None:
        found = self._at(-100, path)
        return None if found is None else Operation("truncate", found, offset=size)

    def _ftruncate(self, descriptor: int, size: int, *_: int) -> Operation | None:
        """One to the size that the file has changes nothing."""
        path = self._of(descriptor)
        if path is None or os.stat(os.path.join(self.root, path)).st_size == size:
            return None
        return Operation("truncate", path, offset=size)

    def _fsync(self, descriptor: int, *_: int) -> Operation | None:
        path = self._of(descriptor)
        return None if path is None else Operation("sync", path)

    _fdatasync = _fsync

    def _rename(self, old: int, new: int, *_: int) -> Operation | None:
        return self._renameat(-100, old, -100, new)

    def _renameat(self, folder: int, old: int, target: int, new: int, *_: int) -> Operation | None:
        return self._two("rename", self._at(folder, old), self._at(target, new))

    def _renameat2(self, folder: int, old: int, target: int, new: int, flags: int, *_: int) -> Operation | None:
        found = self._renameat(folder, old, target, new)
        if found is not None and flags:
            raise NotImplementedError("renameat2 with flags")
        return found

    def _link(self, old: int, new: int, *_: int) -> Operation | None:
        return self._linkat(-100, old, -100, new)

    def _linkat(self, folder: int, old: int, target: int, new: int, *_: int) -> Operation | None:
        return self._two("link", self._at(folder, old), self._at(target, new))

    def _two(self, name: str, path: str | None, other: str | None) -> Operation | None:
        if path is None and other is None:
            return None
        if path is None or other is None:
            raise NotImplementedError(f"{name} across the edge of the folder")
        return Operation(name, path, other)

    def _symlink(self, target: int, new: int, *_: int) -> Operation | None:
        return self._symlinkat(target, -100, new)

    def _symlinkat(self, target: int, folder: int, new: int, *_: int) -> Operation | None:
        path = self._at(folder, new)
        return None if path is None else Operation("symlink", path, data=os.fsencode(self._text(target)))

    def _unlink(self, path: int, *_: int) -> Operation | None:
        return self._named("unlink", -100, path)

    def _rmdir(self, path: int, *_: int) -> Operation | None:
        return self._named("rmdir", -100, path)

    def _unlinkat(self, folder: int, path: int, flags: int, *_: int) -> Operation | None:
        return self._named("rmdir" if flags & AT_REMOVEDIR else "unlink", folder, path)

    def _mkdir(self, path: int, *_: int) -> Operation | None:
        return self._mkdirat(-100, path)

    def _mkdirat(self, folder: int, path: int, *_: int) -> Operation | None:
        """One that is there already is refused by the kernel."""
        found = self._at(folder, path)
        there = found is None or os.path.lexists(os.path.join(self.root, found))
        if there or not os.path.isdir(os.path.dirname(os.path.join(self.root, found or ""))):
            return None
        return Operation("mkdir", found or "")

    def _named(self, name: str, folder: int, path: int) -> Operation | None:
        """A change of a name that is there."""
        found = self._at(folder, path)
        return Operation(name, found) if found is not None and os.path.lexists(os.path.join(self.root, found)) else None

    def _chmod(self, path: int, *_: int) -> Operation | None:
        return self._named("mode", -100, path)

    def _fchmodat(self, folder: int, path: int, *_: int) -> Operation | None:
        return self._named("mode", folder, path)

    def _fchmod(self, descriptor: int, *_: int) -> Operation | None:
        path = self._of(descriptor)
        return None if path is None else Operation("mode", path)


def _signed(value: int) -> int:
    """A descriptor as C's int."""
    return value - (1 << 32) if (value & 0xFFFFFFFF) >> 31 and value > 0 else value
