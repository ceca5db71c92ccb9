"""Durations (`90s`, `15m`, `1h30m`) and decimals (`"2e-4"`) as the API writes them: strings, for floats drift in GitOps diffs."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

# Bounded, so that no value, however written, overflows a date or fills the memory when it is brought to canonical form.
DURATION_PATTERN = r"^([0-9]{1,4}(\.[0-9]{1,3})?d|[0-9]{1,5}(\.[0-9]{1,3})?h|[0-9]{1,7}(\.[0-9]{1,3})?(ms|s|m)){1,5}$"
DECIMAL_PATTERN = r"^-?[0-9]{1,12}(\.[0-9]{1,12})?([eE]-?[0-9]{1,2})?$"
QUANTITY_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,3})?([KMGTPE]i|[kMGTPEm])?$"
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


@lru_cache(maxsize=1024)  # most are the defaults, read again in each cycle
def seconds(text: str) -> float:
    """Seconds of a duration; ValueError names the text and the form it must have."""
    if not re.match(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m or 1h30m")
    return float(sum((Decimal(n) * _SECONDS[unit] for n, unit in _PART.findall(text)), Decimal(0)))


def decimal(text: str) -> float:
    """Value of a decimal; ValueError names the text and the form it must have."""
    if not re.match(DECIMAL_PATTERN, text):
        raise ValueError(f"{text!r} is not a decimal such as 0.5 or 2e-4")
    return float(Decimal(text))


def canonical_duration(text: str) -> str:
    """The same duration in seconds: `15m` is `900s`."""
    return f"{f'{seconds(text):.3f}'.rstrip('0').rstrip('.')}s"


def canonical_decimal(text: str) -> str:
    """The same decimal without exponent or trailing zeros: `2e-4` is `0.0002`."""
    plain = f"{Decimal(text).normalize():f}"
    return "0" if plain == "-0" else plain


_QUANTITY = re.compile(r"^(-?[0-9]+(?:\.[0-9]+)?)(m|k|[KMGTP]i?|Ei?)?$")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)} | {
    f"{letter}{suffix}": Decimal(base) ** power
    for power, letter in enumerate("KMGTPE", start=1)
    for suffix, base in (("", 1000), ("i", 1024))
}


def quantity(text: str) -> Decimal | None:
    """Value of a Kubernetes quantity (`500m`, `4Gi`); None when the text is none."""
    found = _QUANTITY.match(text)
    return Decimal(found[1]) * _FACTORS[found[2] or ""] if found else None
