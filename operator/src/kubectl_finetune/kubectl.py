"""kubectl as this plugin uses it: one-shot commands with the user's credentials, and errors that say what to do.

PluginError
├── NotFound      there is no such object
└── Refused       the user lacks a right
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]
MANAGER: Final = "kubectl-finetune"  # the field manager of what the plugin writes
SECONDS: Final = 30.0
NO_KUBECTL: Final = "kubectl is not on PATH: the plugin speaks to the cluster through it"
FINETUNES: Final = "finetunes.finetune.dev"


class PluginError(Exception):
    """Something that the user can act on; the message says what."""


class NotFound(PluginError):
    """There is no such object."""


class Refused(PluginError):
    """The API server says that the user may not."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl's command line: `flags` are the user's (--namespace, --context, --kubeconfig)."""

    flags: Sequence[str] = ()
    command: Sequence[str] = ("kubectl",)

    def __call__(self, *arguments: str, stdin: str | None = None, seconds: float = SECONDS) -> str:
        """Its standard output. PluginError with what it said."""
        try:
            done = subprocess.run(
                [*self.command, *arguments, *self.flags], input=stdin, capture_output=True, text=True, timeout=seconds, check=False
            )
        except FileNotFoundError:
            raise PluginError(NO_KUBECTL) from None
        except subprocess.TimeoutExpired:
            raise PluginError(f"kubectl {arguments[0]} did not answer within {seconds:.0f} s: is the cluster reachable?") from None
        if done.returncode:
            raise classified(done.stderr.strip())
        return done.stdout

    def lines(self, *arguments: str, most: int) -> Iterator[str]:
        """Its standard output, line by line as it comes. PluginError with what it said, or when it says more than `most` bytes."""
        try:
            process = subprocess.Popen([*self.command, *arguments, *self.flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise PluginError(NO_KUBECTL) from None
        with process, ThreadPoolExecutor(1) as reader:
            assert process.stdout
            assert process.stderr
            said = reader.submit(process.stderr.read)
            try:
                for line in process.stdout:
                    most -= len(line)
                    if most < 0:
                        raise PluginError(f"kubectl {arguments[0]} has more to say than is read at once: narrow what is asked")
                    yield line.decode(errors="replace")
            except BaseException:  # whoever reads has seen enough
                process.kill()
                raise
            if process.wait():
                raise classified(said.result().decode(errors="replace").strip())

    def finetune(self, name: str) -> Object:
        """The FineTune of that name. NotFound names the ones that are there."""
        try:
            return self.read("get", FINETUNES, name)
        except NotFound:
            there = [item["metadata"]["name"] for item in self.read("get", FINETUNES).get("items", ())]
            known = f"; there are: {', '.join(there)}" if there else "; there is none in this namespace (-n names another one)"
            raise NotFound(f"there is no FineTune {name}{known}") from None

    def items(self, *arguments: str) -> list[Object]:
        """The objects of a list."""
        return list(self.read("get", *arguments).get("items", ()))

    def read(self, *arguments: str) -> Object:
        """What a command prints as JSON."""
        return dict(json.loads(self(*arguments, "--output=json")))


def classified(said: str) -> PluginError:
    """The error for what kubectl wrote to its standard error."""
    text = said.splitlines()[-1].removeprefix("error: ") if said else "kubectl failed and said nothing"
    if "(NotFound)" in said:
        return NotFound(text)
    if "(Forbidden)" in said and " cannot " in said:  # a quota and most admission policies say Forbidden, too
        return Refused(
            f"{text}. Ask for the ClusterRole `edit` in this namespace (`view` is enough for status): the chart adds FineTunes to both"
        )
    if "the server doesn't have a resource type" in said:
        return PluginError("this cluster knows no FineTunes: install the operator's chart (its CRD), or choose another --context")
    return PluginError(text)
