"""Who saw which arm: the log of an A/B test, lines of JSON on the routers' standard output.

It is written by Envoy's access log, for a request that the filter (exposure_log.lua) has found to be a user's inference; the filter runs
only where the routes tell it to, while a rollout with `rollout.experiment.log` is under way. Users are known by a keyed hash alone.
What each field means: docs/contracts.md. Why the router logs it: docs/adr/0013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Rollout
from finetune_operator.build import identity
from finetune_operator.build.envoy import TYPE, script
from finetune_operator.build.upstreams import METADATA
from finetune_operator.traffic import Structure

FILTER: Final = "finetune.exposure"
SCRIPT: Final = script("exposure_log.lua")
KEY_VARIABLE: Final = "FINETUNE_EXPOSURE_KEY"
KEY_ENTRY: Final = "key"  # of the Secret
KEY_BYTES: Final = 16  # a shorter key could be guessed: the filter then logs nothing
USER_DIGITS: Final = 32  # of a user's hash, in hexadecimal
KEY_DIGITS: Final = 8  # of the key's own: of the hash of an empty text, which is nobody's name
LOG: Final = "finetune.exposure/1"


@dataclass(frozen=True)
class Exposures:
    """What every line says of the rollout: its name, and the canary's share that its experiment fixes, in percent."""

    rollout: str
    split: int


def wanted(spec: Spec, running: Rollout | None) -> Exposures | None:
    """Is a log asked for? `running` is the rollout, the present or the last one. A split that was fixed is told as it is."""
    experiment = spec.rollout.experiment
    if experiment is None or experiment.log is None or running is None or running.name is None:
        return None
    return Exposures(running.name, running.experiment.weight if running.experiment else experiment.weight)


def context(exposures: Exposures | None, structure: Structure, paths: tuple[str, ...]) -> dict[str, Any] | None:
    """What the filter is told; None: it does not run. `paths` are those of inference."""
    if exposures is None or structure.canary is None:
        return None
    return {
        "paths": list(paths), "headers": list(identity.headers(structure)), "rollout": exposures.rollout,
        "canary": structure.canary.arm, "split": exposures.split,
    }  # fmt: skip


def access_log() -> dict[str, Any]:
    """Of every listener of users: a line for each request of which the filter knows the user."""
    marked = {
        "metadata_filter": {
            "matcher": {"filter": FILTER, "path": [{"key": "user"}], "value": {"present_match": True}},
            "match_if_key_not_found": False,
        }
    }
    log = {"@type": f"{TYPE}.extensions.access_loggers.stream.v3.StdoutAccessLog", "log_format": {"json_format": _line()}}
    return {"name": "envoy.access_loggers.stdout", "filter": marked, "typed_config": log}


def key(spec: Spec) -> list[dict[str, Any]]:
    """The router's variable with the key. A pod keeps the key that it began with; one that found no Secret serves, and logs nothing."""
    experiment = spec.rollout.experiment
    if experiment is None or experiment.log is None:
        return []
    secret = {"name": experiment.log.secret_name, "key": KEY_ENTRY, "optional": True}
    return [{"name": KEY_VARIABLE, "valueFrom": {"secretKeyRef": secret}}]


def _line() -> dict[str, str]:
    found = ("user", "key", "rollout", "canary", "split", "first_ms", "prompt_tokens", "completion_tokens", "response")
    return {
        "log": LOG,
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "arm": f"%CLUSTER_METADATA({METADATA}:arm)%",
        "revision": f"%CLUSTER_METADATA({METADATA}:revision)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        **{field: f"%DYNAMIC_METADATA({FILTER}:{field})%" for field in found},
    }
