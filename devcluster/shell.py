"""Running commands, locking between processes, and telling the user how far it is."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from devcluster import paths


class DevclusterError(Exception):
    """Something the user can act on; the message says what and, where known, the fix."""


class CommandError(DevclusterError):
    """A command ended with a status other than 0; carries the end of its output."""


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    check: bool = True,
) -> str:
    """Standard output of a command. With `log`, all output goes to that file instead (and "" is returned)."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    merged = {**os.environ, **env} if env else None
    command = [str(word) for word in argv]
    if shutil.which(command[0]) is None:
        raise DevclusterError(f"the command {command[0]} is missing on this machine")
    if log is None:
        done = subprocess.run(command, input=data, env=merged, cwd=cwd, capture_output=True)
        out, tail = done.stdout.decode(errors="replace"), (done.stderr or done.stdout).decode(errors="replace")
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            done = subprocess.run(command, input=data, env=merged, cwd=cwd, stdout=sink, stderr=sink)
        out, tail = "", log.read_text(errors="replace")
    if check and done.returncode != 0:
        where = f" (all of it: {log})" if log else ""
        raise CommandError(f"{' '.join(command[:4])} … ended with {done.returncode}{where}:\n{tail[-3000:].strip()}")
    return out


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def wait_for(what: str, ready: Callable[[], bool], *, seconds: float, hint: str = "") -> None:
    """Poll until `ready()`; raise DevclusterError naming what was waited for."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise DevclusterError(f"waited {seconds:.0f} s for {what}. {hint}".strip())
        time.sleep(0.1)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Machine-wide mutual exclusion between processes; released by the kernel if the holder dies."""
    folder = Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path("/tmp")
    with (folder / f"finetune-{name}.lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds the lock {handle.name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Progress:
    """Says each phase with its seconds and what is left, judged by earlier runs (kept in the cache).

    A phase that took a small part of what was expected had nothing to do: it does not change the expectation.
    """

    def __init__(self, title: str, expected: Mapping[str, float]) -> None:
        self._file = paths.cache() / "timings" / f"{title}.json"
        self._known = self._remembered()
        self._expected = {name: self._known.get(name, seconds) for name, seconds in expected.items()}
        self._title, self._started = title, time.monotonic()
        self._left = list(self._expected)

    def _remembered(self) -> dict[str, float]:
        try:
            return dict(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            return {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun, over = time.monotonic(), threading.Event()
        ticker = threading.Thread(target=self._tick, args=(name, begun, over), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()
        took = time.monotonic() - begun
        if name in self._left:
            self._left.remove(name)
        left = sum(self._expected[later] for later in self._left)
        say(f"[{self._title} {time.monotonic() - self._started:5.1f} s] {name}: {took:.1f} s; about {left:.0f} s left")
        if took > self._expected.get(name, 0.0) / 10:
            self._known[name] = round(took, 1)

    def _tick(self, name: str, begun: float, over: threading.Event) -> None:
        while not over.wait(15):
            took, usual = time.monotonic() - begun, self._expected.get(name, 0.0)
            share = f"of about {usual:.0f} s" if took <= usual else f"and not done; {usual:.0f} s were expected"
            say(f"[{self._title} {time.monotonic() - self._started:5.1f} s] {name}: {took:.0f} s {share}")

    def remember(self) -> None:
        """Keep this run's seconds as the next run's expectation."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._known))
