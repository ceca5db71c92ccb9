"""A cluster as the plugin meets it: kubectl's commands over recorded objects, and an operator that answers what is asked of it."""

from __future__ import annotations

import base64
import copy
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_operator import names
from finetune_operator.api.status import Status
from finetune_operator.decide import control
from finetune_operator.decide.draft import Draft
from kubectl_finetune.kubectl import FINETUNES, Kubectl, NotFound, PluginError

from tests.gitops.recorded import load
from tests.unit.operator.helpers import make_observed

Object = dict[str, Any]
NOW = datetime(2026, 11, 24, 22, 33, tzinfo=UTC)


def recorded(file: str, **status: Any) -> Object:
    """A FineTune of a real run, with fields of its status replaced."""
    finetune = copy.deepcopy(load(file))
    finetune["status"] = {**finetune.get("status", {}), **status}
    return finetune


def rolling(**changes: Any) -> Object:
    """One that moves ten per cent of its users, under an operator that names its rollouts."""
    finetune = recorded("RollingOut")
    finetune["status"]["rollout"] |= {"name": "a1b2c3d4", "state": "Holding", **changes}
    return finetune


@dataclass(frozen=True)
class FakeKubectl(Kubectl):
    """What kubectl would print. `files` are on the work volume; `fails` is asked first; `calls` is everything that was asked."""

    finetunes: dict[str, Object] = field(default_factory=dict)
    objects: dict[str, list[Object]] = field(default_factory=dict)  # by resource
    raw: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    fails: Callable[[tuple[str, ...]], PluginError | None] = lambda _: None
    answers: bool = True
    pods: dict[str, Object] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    secrets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    logged: Iterable[str] = ()  # by the routers

    def __call__(self, *arguments: str, stdin: str | None = None, seconds: float = 30.0) -> str:
        self.calls.append(arguments)
        if error := self.fails(arguments):
            raise error
        match arguments:
            case ("get", "--raw", path):
                return self.raw[path]
            case ("get", "secret", name, "--output=json"):
                return json.dumps({"data": {key: base64.b64encode(value).decode() for key, value in self.secrets[name].items()}})
            case ("get", "pod", name, "--output=json"):
                return json.dumps(self._pod(name))
            case ("get", resource, "--output=json") if resource == FINETUNES:
                return json.dumps({"items": list(self.finetunes.values())})
            case ("get", resource, name, "--output=json") if resource == FINETUNES:
                if name not in self.finetunes:
                    raise NotFound(f'finetunes.finetune.dev "{name}" not found')
                return json.dumps(self.finetunes[name])
            case ("get", resource, *_):
                return json.dumps({"items": self.objects.get(resource, [])})
            case ("annotate", resource, name, annotation, "--overwrite", "--field-manager=kubectl-finetune") if resource == FINETUNES:
                key, _, value = annotation.partition("=")
                self._annotate(self.finetunes[name], key, value)
                return ""
            case ("create", "--filename=-", "--field-manager=kubectl-finetune"):
                pod = json.loads(stdin or "")
                self.pods[pod["metadata"]["name"]] = pod
                return ""
            case ("logs", name):
                path = self.pods[name]["spec"]["containers"][0]["command"][-1]
                return base64.encodebytes(gzip.compress(self.files[path])).decode()
            case ("delete", "pod", name, "--wait=false", "--ignore-not-found"):
                self.pods.pop(name, None)
                return ""
        raise AssertionError(f"unexpected: kubectl {' '.join(arguments)}")

    def lines(self, *arguments: str, most: int) -> Iterator[str]:
        self.calls.append(arguments)
        yield from self.logged

    def _annotate(self, finetune: Object, key: str, value: str) -> None:
        """The operator hears it, by its own rules."""
        assert key == names.CONTROL
        finetune["metadata"].setdefault("annotations", {})[key] = value
        if self.answers:
            status = Status.model_validate(finetune["status"])
            finetune["status"] = control.heard(make_observed(control=value), Draft(status=status)).status.to_dict()

    def _pod(self, name: str) -> Object:
        path = self.pods[name]["spec"]["containers"][0]["command"][-1]
        code = 0 if path in self.files else 3
        ended = [{"name": "reader", "state": {"terminated": {"exitCode": code}}}]
        return {**self.pods[name], "status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": ended}}


def cluster(*finetunes: Object, **changes: Any) -> FakeKubectl:
    """A cluster with those FineTunes in the namespace that is asked."""
    return FakeKubectl(finetunes={f["metadata"]["name"]: f for f in finetunes}, **changes)
