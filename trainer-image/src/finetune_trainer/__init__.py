"""The trainer: one container image that fetches, prepares, trains, evaluates and serves.

It shares no code with the operator; `docs/contracts.md` holds everything the two agree on.
"""

__version__ = "0.1.0"
