"""What a HorizontalPodAutoscaler has found, whatever the least that it may set: a pure function of its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from finetune_operator.api.quantities import quantity

Object = Mapping[str, Any]


def needed(scaler: Object) -> int | None:
    """Pods by its own formula: those that there are × what it found of each / what each is to have. None while it has no figures."""
    status = scaler.get("status") or {}
    asked, found = _first(scaler["spec"]), _first({"metrics": status.get("currentMetrics")})
    active = any(c["type"] == "ScalingActive" and c["status"] == "True" for c in status.get("conditions") or ())
    target, current = _figure(asked, "target"), _figure(found, "current")
    if not active or not target or current is None or asked.get("type") != found.get("type"):
        return None
    return math.ceil(int(status.get("currentReplicas") or 0) * current / target)


def _first(spec: Object) -> Object:
    found: Object = next(iter(spec.get("metrics") or ()), {})
    return found


def _figure(metric: Object, which: str) -> Decimal | None:
    """Percent of the request, or a quantity, of each pod."""
    part = (metric.get("resource") or metric.get("pods") or {}).get(which) or {}
    if part.get("averageUtilization") is not None:
        return Decimal(part["averageUtilization"])
    return quantity(str(part.get("averageValue")))
