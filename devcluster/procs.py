"""Detached processes that are known by pid and start time, so that a reused pid is never mistaken for ours."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# The subshell moves itself into the cgroup (if any), then becomes the program: $! is the program's pid.
_LAUNCH = 'cgroup=$1; log=$2; shift 2; ( [ -z "$cgroup" ] || echo 0 >"$cgroup"; exec "$@" ) >>"$log" 2>&1 & echo $!'


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(
    argv: Sequence[str | Path],
    *,
    pid_file: Path,
    log: Path,
    cgroup: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Start a program that outlives us, note it in its pid file, and return its pid."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["/bin/sh", "-c", _LAUNCH, "sh", str(cgroup or ""), str(log), *map(str, argv)]
    merged = {**os.environ, **(env or {})}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, env=merged, check=True)
    pid = int(done.stdout)
    pid_file.write_text(f"{pid} {start_time(pid) or 0}\n")
    return pid


def running(pid_file: Path) -> int | None:
    """Pid of the process noted in the file, if that very process still runs."""
    try:
        pid, started = map(int, pid_file.read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def stop(pid_file: Path, *, sig: int = signal.SIGKILL, seconds: float = 10.0) -> None:
    """End the noted process (SIGKILL after `seconds`) and forget its pid file."""
    deadline = time.monotonic() + seconds
    pid = running(pid_file)
    while pid is not None and running(pid_file) is not None:
        kill(pid, sig if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.02)
    pid_file.unlink(missing_ok=True)


def kill_all(find: Sequence[Path], *, seconds: float = 10.0) -> None:
    """SIGKILL every process listed in these cgroup.procs files until none is left."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pids = [pid for pid in members(find) if start_time(pid) is not None]
        if not pids:
            return
        for pid in pids:
            kill(pid)
        time.sleep(0.05)


def members(cgroup_files: Sequence[Path]) -> set[int]:
    """Pids in the given cgroup.procs files; files that are gone count as empty."""
    pids: set[int] = set()
    for file in cgroup_files:
        with contextlib.suppress(OSError):
            pids.update(int(word) for word in file.read_text().split())
    return pids
