"""What the operator reads of objects, kind by kind. The rest, most of what an API server sends, is skipped as the bytes are read.

Of 1,000 Jobs and as many pods, 13 MB, that is a tenth of the time and of the memory. Of what the operator writes again (by `apply`) all
stays that was written, and what others may have added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, TypedDict, cast

import msgspec

from finetune_operator import names
from finetune_operator.kinds import CHILDREN, CONTROLLER_REVISION, EXTRAS, FINETUNE, JOB, LEASE, POD, Kind

Object = dict[str, Any]
METADATA: Final = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "labels", "annotations", "ownerReferences", "finalizers",
)  # fmt: skip
CONTENT: Final = ("spec", "data", "binaryData", "immutable", "revision")
ANNOTATIONS: Final = (names.RETRY, names.CONTROL, names.NUDGE, names.JOB_INDEX)
LABELS: Final = (
    names.MANAGED_BY, names.NAME, names.REVISION, names.STAGE, names.ARM, names.COMPONENT, names.JOB_NAME, names.ASKED, names.KEY,
)  # fmt: skip
OWNER: Final = ("kind", "uid", "controller")
CONDITION: Final = ("type", "status", "reason", "message", "lastTransitionTime")
JOB_SPEC: Final = ("suspend", "completions", "parallelism")
POD_SPEC: Final = ("nodeName",)
POD_STATUS: Final = ("phase", "reason", "message", "podIP", "startTime", "nominatedNodeName")
CONTAINER: Final = ("name", "image", "restartCount")
STATE: Final = ("waiting", "running")
TERMINATED: Final = ("exitCode", "reason", "message", "finishedAt")


def _of(keys: Iterable[str], **typed: Any) -> Any:
    """The type of a dict of which those keys are kept as they are, and those others as they are typed."""
    return TypedDict("_Kept", {**dict.fromkeys(keys, Any), **typed}, total=False)  # type: ignore[operator]


def _object(**typed: Any) -> Any:
    return _of(CONTENT, **{"metadata": _of(METADATA), **typed})


def _some(keys: Iterable[str], **typed: Any) -> Any:
    return list[_of(keys, **typed)] | None  # type: ignore[misc]


_READ: Final = _of(ANNOTATIONS) | None
_NEVER_APPLIED: Final = _of(METADATA, annotations=_READ, labels=_of(LABELS) | None, ownerReferences=_some(OWNER))
_STATE: Final = _of(STATE, terminated=_of(TERMINATED) | None) | None
_CONTAINERS: Final = _some(CONTAINER, state=_STATE, lastState=_STATE)
_CONDITIONS: Final = _some(CONDITION)
_TYPES: Final[Mapping[Kind, Any]] = {
    **dict.fromkeys((*CHILDREN, LEASE), _object()),
    **dict.fromkeys(EXTRAS, _object(status=Any)),
    FINETUNE: _object(metadata=_of(METADATA, annotations=_READ), status=Any),
    CONTROLLER_REVISION: _object(metadata=_NEVER_APPLIED),
    JOB: _object(metadata=_NEVER_APPLIED, spec=_of(JOB_SPEC), status=_of(("startTime",), conditions=_CONDITIONS)),
    POD: _object(
        metadata=_NEVER_APPLIED,
        spec=_of(POD_SPEC),
        status=_of(POD_STATUS, conditions=_CONDITIONS, containerStatuses=_CONTAINERS, initContainerStatuses=_CONTAINERS),
    ),
}


def projected(kind: Kind, obj: Mapping[str, Any]) -> Object:
    """No more of an object than is ever read, with its apiVersion and kind (items of a LIST have none)."""
    return _named(kind, msgspec.convert(obj, _type(kind)))


def read(kind: Kind, raw: bytes) -> Object:
    """That of an object's JSON; msgspec.DecodeError when it is none."""
    return _named(kind, _decoder(kind)(raw))


def read_page(kind: Kind, raw: bytes) -> tuple[Mapping[str, str], list[Object]]:
    """The metadata of a list, and what `read` would give of its items; msgspec.DecodeError."""
    page = _page_decoder(kind)(raw)
    return page.get("metadata") or {}, [_named(kind, item) for item in page.get("items") or ()]


def read_event(kind: Kind, raw: bytes) -> tuple[str, Object]:
    """The type and the object of a line of a watch, which is whole when it is an ERROR; msgspec.DecodeError."""
    event = _EVENT(raw)
    return event.type, msgspec.json.decode(event.object) if event.type == "ERROR" else read(kind, event.object)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_EVENT: Final = msgspec.json.Decoder(_Event).decode


def _named(kind: Kind, obj: Object) -> Object:
    obj["apiVersion"], obj["kind"] = kind.api_version, kind.kind
    return obj


def _type(kind: Kind) -> Any:
    return _TYPES.get(kind, dict[str, Any])


@cache
def _decoder(kind: Kind) -> Callable[[bytes], Object]:
    return cast(Callable[[bytes], Object], msgspec.json.Decoder(_type(kind)).decode)


@cache
def _page_decoder(kind: Kind) -> Callable[[bytes], Mapping[str, Any]]:
    page = _of((), metadata=dict[str, Any], items=list[_type(kind)] | None)  # type: ignore[misc]
    return cast(Callable[[bytes], Mapping[str, Any]], msgspec.json.Decoder(page).decode)
