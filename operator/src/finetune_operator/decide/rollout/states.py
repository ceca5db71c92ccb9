"""The states of a rollout, as the status says them, and what its user may ask of it."""

from __future__ import annotations

from typing import Final

DEPLOYING: Final = "Deploying"
CONNECTING: Final = "Connecting"
SHIFTING: Final = "Shifting"
HOLDING: Final = "Holding"
BAKING: Final = "Baking"
ROLLING_BACK: Final = "RollingBack"
PROMOTED: Final = "Promoted"
ROLLED_BACK: Final = "RolledBack"
ACTIVE: Final = frozenset({DEPLOYING, CONNECTING, SHIFTING, HOLDING, BAKING, ROLLING_BACK})
UNMOVED: Final = frozenset({DEPLOYING, CONNECTING})  # the present arm has all users, and had them before
GUARDED: Final = ACTIVE - {ROLLING_BACK}  # the user's own queries are asked
# What the user may ask of a rollout.
PAUSE: Final = "pause"
RESUME: Final = "resume"
PROMOTE: Final = "promote"
ABORT: Final = "abort"
