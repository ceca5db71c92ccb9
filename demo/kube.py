"""kubectl, as this demo uses it: one-shot commands and a watch. No Kubernetes client library is needed."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

Object = dict[str, Any]
READ_BYTES = 65536
RESTART_SECONDS = 2.0
CRD: Final = "finetunes.finetune.dev"


class DemoError(Exception):
    """Something the user can act on; the message says what."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl's command line, and the environment (KUBECONFIG) that selects the cluster."""

    command: tuple[str, ...] = ("kubectl",)
    env: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *args: str, stdin: str | None = None, seconds: float = 180) -> str:
        """Standard output of a command. Raises DemoError with what kubectl said."""
        try:
            done = subprocess.run(
                [*self.command, *args],
                input=stdin,
                env={**os.environ, **self.env},
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            raise DemoError(f"kubectl {' '.join(args)}: no end after {seconds:.0f} s") from None
        if done.returncode != 0:
            raise DemoError(f"kubectl {' '.join(args)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def get(self, *args: str) -> Object | None:
        """An object as JSON, or None where there is none."""
        text = self("get", *args, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def remove_namespace(self, name: str, *, seconds: int = 300, at_once: bool = False) -> None:
        """With all that is in it, if it is there. Its pods go first: a namespace that has some when it is deleted is looked at again only
        after half of their longest grace period, six minutes for a router's. `at_once`: nobody waits for their containers' end."""
        if self.get("namespace", name) is None:
            return
        owners = ["deployments", "replicasets", "jobs"]
        if self.get("crd", CRD):
            owners.insert(0, CRD)
        limit = ("--force", "--grace-period=0") if at_once else (f"--timeout={seconds}s",)
        self("-n", name, "delete", ",".join(owners), "--all", f"--timeout={seconds}s", seconds=seconds + 30)
        self("-n", name, "delete", "pods", "--all", *limit, seconds=seconds + 30)
        self("delete", "namespace", name, f"--timeout={seconds}s", seconds=seconds + 30)

    async def aget(self, *args: str) -> Object | None:
        """`get`, off the event loop."""
        return await asyncio.to_thread(self.get, *args)

    async def watch(self, *args: str) -> AsyncIterator[Object]:
        """Each version of the objects as it comes; a watch that ends is begun again."""
        while True:
            command = [*self.command, "get", *args, "--watch", "-o", "json"]
            async with child(command, self.env) as process:
                documents, text = Documents(), codecs.getincrementaldecoder("utf-8")()
                while chunk := await reader(process).read(READ_BYTES):
                    for document in documents.feed(text.decode(chunk)):
                        yield document
            await asyncio.sleep(RESTART_SECONDS)


class Documents:
    """JSON documents out of a stream of text that has one after the other, cut anywhere."""

    def __init__(self) -> None:
        self._rest = ""
        self._decoder = json.JSONDecoder()

    def feed(self, text: str) -> list[Object]:
        """The documents that this text completes."""
        self._rest = (self._rest + text).lstrip()
        found = []
        while self._rest:
            try:
                document, end = self._decoder.raw_decode(self._rest)
            except json.JSONDecodeError:
                break
            found.append(document)
            self._rest = self._rest[end:].lstrip()
        return found


class child:  # noqa: N801 - reads as a statement: `async with child(...)`
    """A subprocess that is ended with the block; its standard output is a pipe, its errors are dropped."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._command, self._env = command, env

    async def __aenter__(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, **self._env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            stdin=asyncio.subprocess.DEVNULL,
        )
        return self._process

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)  # asyncio's own kill() would take the exit status from its watcher
        await self._process.wait()


def reader(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    """The pipe from a child's standard output."""
    assert process.stdout is not None  # PIPE was asked for
    return process.stdout
