"""The operator's settings: environment → one frozen value. An error names the variable, what is wrong and the fix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from finetune_operator.api.quantities import quantity
from finetune_operator.build.pods import Accelerator
from finetune_operator.errors import FineTuneError


class SettingsError(FineTuneError):
    """A variable is missing or wrong."""


@dataclass(frozen=True)
class Settings:
    """What the chart tells the operator."""

    trainer_image: str
    router_image: str
    vllm_image: str = ""
    namespaces: tuple[str, ...] = ()  # empty: all
    lease_namespace: str = "default"
    lease_name: str = "finetune-operator"
    identity: str = ""
    metrics_port: int = 9090
    health_port: int = 8080
    workers: int = 8
    sweep_seconds: float = 300.0
    log_format: str = "json"
    profiles: Mapping[str, Accelerator] = field(default_factory=dict)
    prometheus_url: str = ""  # empty: none, and no FineTune may ask for guards of its own
    prometheus_seconds: float = 10.0  # until it is asked the same again
    prometheus_authorization: str = field(default="", repr=False)
    ingress_annotations: tuple[str, ...] = ()  # that a FineTune may set; `…*`: those that begin so


def from_environment(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; SettingsError names the variable."""
    return Settings(
        trainer_image=_required(environ, "FINETUNE_TRAINER_IMAGE"),
        router_image=_required(environ, "FINETUNE_ROUTER_IMAGE"),
        vllm_image=environ.get("FINETUNE_VLLM_IMAGE", "").strip(),
        namespaces=_list(environ, "FINETUNE_NAMESPACES"),
        lease_namespace=environ.get("FINETUNE_LEASE_NAMESPACE", "default"),
        lease_name=environ.get("FINETUNE_LEASE_NAME", "finetune-operator"),
        identity=environ.get("FINETUNE_IDENTITY") or environ.get("HOSTNAME", "finetune-operator"),
        metrics_port=int(_number(environ, "FINETUNE_METRICS_PORT", 9090, 1, 65535)),
        health_port=int(_number(environ, "FINETUNE_HEALTH_PORT", 8080, 1, 65535)),
        workers=int(_number(environ, "FINETUNE_WORKERS", 8, 1, 256)),
        sweep_seconds=_number(environ, "FINETUNE_SWEEP_SECONDS", 300, 1, 86400),
        log_format=_choice(environ, "FINETUNE_LOG_FORMAT", ("json", "text")),
        profiles=_profiles(environ.get("FINETUNE_PROFILES_FILE")),
        prometheus_url=_address(environ, "FINETUNE_PROMETHEUS_URL"),
        prometheus_seconds=_number(environ, "FINETUNE_PROMETHEUS_SECONDS", 10, 1, 300),
        prometheus_authorization=environ.get("FINETUNE_PROMETHEUS_AUTHORIZATION", "").strip(),
        ingress_annotations=_list(environ, "FINETUNE_INGRESS_ANNOTATIONS"),
    )


def accelerators(document: Any) -> dict[str, Accelerator]:
    """Accelerator profiles from their YAML, name → profile (docs/gpus.md); SettingsError names the profile and the key."""
    if not isinstance(document, Mapping):
        raise SettingsError("FINETUNE_PROFILES_FILE must hold a mapping of names to profiles")
    return {str(name): _accelerator(str(name), profile) for name, profile in document.items()}


def _accelerator(name: str, profile: Any) -> Accelerator:
    if not isinstance(profile, Mapping):
        raise SettingsError(f"FINETUNE_PROFILES_FILE: profile {name} must be a mapping with resource and nodeLabels")
    unknown = set(profile) - set(_PROFILE)
    if unknown:
        raise SettingsError(f"FINETUNE_PROFILES_FILE: profile {name} has unknown keys {', '.join(sorted(unknown))}")
    given = {}
    for key, value in {"resource": "nvidia.com/gpu", **profile}.items():
        field_name, read = _PROFILE[key]
        try:
            given[field_name] = read(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise SettingsError(f"FINETUNE_PROFILES_FILE: profile {name}, {key}: {value!r} is not {read.__doc__}: {error}") from error
    return Accelerator(name, **given)


def _word(value: Any) -> str:
    """a text"""
    if not isinstance(value, str) or not value:
        raise ValueError(f"it is of type {type(value).__name__}, or empty")
    return value


def _words(value: Any) -> dict[str, str]:
    """a mapping of names to texts"""
    return {str(k): str(v) for k, v in (value or {}).items()}


def _labels(value: Any) -> dict[str, tuple[str, ...]]:
    """a mapping of labels to lists of values"""
    if any(isinstance(v, str) for v in (value or {}).values()):
        raise ValueError("write a list of values even if there is one")
    return {str(k): tuple(str(x) for x in v) for k, v in (value or {}).items()}


def _tolerations(value: Any) -> tuple[dict[str, Any], ...]:
    """a list of tolerations"""
    return tuple({str(k): v for k, v in toleration.items()} for toleration in value or ())


def _quantity(value: Any) -> str:
    """a quantity such as 8Gi"""
    found = quantity(str(value))
    if found is None or found <= 0:
        raise ValueError("write a number above 0 with a unit such as Gi")
    return str(value)


def _bytes(value: Any) -> int:
    """a quantity such as 79Gi"""
    return int(quantity(_quantity(value)) or 0)


def _price(value: Any) -> float:
    """a price, 0 or above"""
    price = float(value)
    if not 0 <= price < 1e6:
        raise ValueError("it is out of range")
    return price


def _count(value: Any) -> int:
    """a number of accelerators, 1 or above"""
    if not isinstance(value, int) or value < 1:
        raise ValueError("write a whole number")
    return value


# Key of a profile → field of Accelerator, and what reads it; a reader's docstring says what it wants.
_PROFILE: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "resource": ("resource", _word),
    "nodeLabels": ("node_labels", _labels),
    "env": ("env", _words),
    "memory": ("memory_bytes", _bytes),
    "tolerations": ("tolerations", _tolerations),
    "hourlyPrice": ("hourly_price", _price),
    "extraResources": ("extra_resources", _words),
    "sharedMemory": ("shared_memory", _quantity),
    "priorityClassName": ("priority_class", _word),
    "perMachine": ("per_machine", _count),
}


def _profiles(path: str | None) -> dict[str, Accelerator]:
    if not path:
        return {}
    try:
        return accelerators(yaml.safe_load(Path(path).read_text()) or {})
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"FINETUNE_PROFILES_FILE={path} cannot be read: {error}") from error


def _address(environ: Mapping[str, str], name: str) -> str:
    """An address without the slash at its end; a user and password in it would be told in errors."""
    text = environ.get(name, "").strip().rstrip("/")
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment):
        raise SettingsError(f"{name} must be like http://prometheus.monitoring.svc:9090, without user, password or query")
    return text


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is not set: it must name an image (the chart's values set it)")
    return value


def _list(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in environ.get(name, "").split(",") if word.strip())


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r} is not a number") from None
    if not low <= value <= high:
        raise SettingsError(f"{name}={text} is not between {low:g} and {high:g}")
    return value


def _choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = environ.get(name) or choices[0]
    if value not in choices:
        raise SettingsError(f"{name}={value!r} is none of {', '.join(choices)}")
    return value
