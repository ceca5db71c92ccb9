"""Requests and limits of a container, and what the API server asks of them."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import partial
from typing import Final

from pydantic import Field

from finetune_operator.api.quantities import quantity
from finetune_operator.api.rule import Node, Rule, comparable
from finetune_operator.api.types import Quantity, SpecModel, Word


class Resources(SpecModel):
    """Requests and limits of a container."""

    requests: dict[Word, Quantity] | None = Field(
        default=None, max_length=16, description="What is reserved, by resource: at most its limit, and of devices just that."
    )
    limits: dict[Word, Quantity] | None = Field(default=None, max_length=16, description="What may be used, by resource.")


def _device(name: str) -> bool:
    """Whether Kubernetes counts it in whole ones, as what a device plugin has: not what is its own, or named as if it were."""
    return "/" in name and "kubernetes.io/" not in name


def _within_limits(resources: Node, *, lent: bool) -> bool:
    """Whether no request is above its limit, and that of a device its limit: as the API server asks of the pods. `lent`: a device's limit may
    be its accelerator's profile's."""
    limits = resources.get("limits") or {}
    return all(
        _fits(quantity(str(wanted)), quantity(str(limits[name])), device=_device(name)) if name in limits else lent or not _device(name)
        for name, wanted in (resources.get("requests") or {}).items()
    )


def _fits(wanted: Decimal | None, limit: Decimal | None, *, device: bool) -> bool:
    """What is no quantity is the pattern's affair."""
    return wanted is None or limit is None or wanted == limit or (wanted < limit and not device)


def _known(resources: Node) -> bool:
    return all(name in _NATIVE or "/" in name or name.startswith(_HUGE) for kind in resources.values() for name in kind or ())


def _whole(resources: Node) -> bool:
    return all(
        not _device(name) or re.fullmatch(_COUNT, str(amount)) for kind in resources.values() for name, amount in (kind or {}).items()
    )


_NATIVE: Final = ("cpu", "memory", "ephemeral-storage")
_HUGE: Final = "hugepages-"
_COUNT: Final = "[0-9]+([kMGTPE]|[KMGTPE]i)?"
_DEVICE: Final = "(k.contains('/') && !k.contains('kubernetes.io/'))"
_COMPARED: Final = "quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k])))"
_COMPARABLE: Final = comparable("self.requests[k]", "self.limits[k]")


def _each(cel: str) -> str:
    """CEL that asks `cel`, of `{0}` and its key `k`, of what is requested and of what is limited."""
    return " && ".join(f"(!has(self.{kind}) || self.{kind}.all(k, {cel.format(f'self.{kind}')}))" for kind in ("requests", "limits"))


def of_container(path: str, *, lent: bool = False) -> tuple[Rule, ...]:
    """What the API server asks of a container's resources, asked when they are written: not once a pod is to be made. `lent`: a device's
    limit may be its accelerator's profile's."""
    return (
        Rule(
            path, "requests",
            "!has(self.requests) || self.requests.all(k, has(self.limits) && k in self.limits ? "
            f"(!({_COMPARABLE}) || ({_DEVICE} ? {_COMPARED} == 0 : {_COMPARED} <= 0)) : {'true' if lent else f'!{_DEVICE}'})",
            "what is requested may not be above its limit, and a device (a name with a /) is requested as it is limited; "
            "lower it, or raise limits",
            partial(_within_limits, lent=lent),
        ),
        Rule(
            path, "",
            _each(f"k in {[*_NATIVE]} || k.contains('/') || k.startsWith('{_HUGE}')"),
            f"a resource is {', '.join(_NATIVE)}, {_HUGE}SIZE, or a device by its whole name, such as nvidia.com/gpu; correct its name",
            _known,
        ),
        Rule(
            path, "",
            _each(f"!{_DEVICE} || string({{0}}[k]).matches('^{_COUNT}$')"),
            "devices are counted in whole numbers, such as 1; correct it",
            _whole,
        ),
    )  # fmt: skip
