"""Every error the operator raises, as one tree.

FineTuneError
├── ClusterError            what the API server answered, classified in `cluster`
│   ├── NotFound            404
│   ├── AlreadyExists       409 on a POST
│   ├── Conflict            409 on a write that carried a resourceVersion
│   ├── Invalid             400, 422: the manifest itself was refused
│   ├── Forbidden           403: the operator lacks a right
│   └── Unavailable         401 (a token that has run out), 429, 5xx, timeouts, connection errors: try again later
├── LeadershipLost          this process may no longer write
└── SpecError               the FineTune asks for something that cannot be; names the field and the fix
"""

from __future__ import annotations


class FineTuneError(Exception):
    """Root of the operator's errors."""


class ClusterError(FineTuneError):
    """The API server refused or failed; `reason` is its word for it, `retry_after` seconds if it named any."""

    def __init__(self, message: str, *, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class NotFound(ClusterError):
    """The object is not there."""


class AlreadyExists(ClusterError):
    """A POST met an object of the same name."""


class Conflict(ClusterError):
    """Somebody wrote in between."""


class Invalid(ClusterError):
    """The API server refused the manifest."""


class Forbidden(ClusterError):
    """The operator's ServiceAccount lacks a right."""


class Unavailable(ClusterError):
    """The API server is busy, unreachable or failing."""


class LeadershipLost(FineTuneError):
    """The Lease is past its deadline: nothing may be written any more."""


class SpecError(FineTuneError):
    """The spec asks for something that cannot be done; the message names the field and the fix."""
