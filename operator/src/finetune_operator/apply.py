"""Children are made by POST and changed by server-side apply, only where they differ from what is wanted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_operator import conditions, logs, names
from finetune_operator.api.quantities import quantity
from finetune_operator.build.needs import needs
from finetune_operator.build.pods import Manifest
from finetune_operator.cache import Cache, belongs
from finetune_operator.cluster import Cluster
from finetune_operator.errors import AlreadyExists, FineTuneError, NotFound
from finetune_operator.kinds import DEPLOYMENT, Kind
from finetune_operator.workloads.run import Waiting

log = logging.getLogger(__name__)
Key = tuple[str, str]


class NameTaken(FineTuneError):
    """A child's name belongs to an object that is not this FineTune's."""

    def __init__(self, kind: str, name: str, *, labelled: bool = False) -> None:
        but = " (it has its labels, and no controller reference to it: of labels anybody can make some)" if labelled else ""
        super().__init__(f"{kind} {name} exists already and is not this FineTune's{but}: delete or rename it, or rename the FineTune")

    @property
    def waiting(self) -> Waiting:
        """The same, for the status."""
        return Waiting(conditions.NAME_TAKEN, str(self))


WHOLE: Final = frozenset({"nodeSelector", "affinity"})  # what others add to these would change what the user asked for
COPIES: Final = {"serviceAccount": "serviceAccountName"}  # fields that the API server keeps equal to another one


@dataclass(frozen=True)
class Children:
    """Writes the children of one FineTune, in one cycle: what was `taken` in it holds up what would mount or name that."""

    cluster: Cluster
    cache: Cache
    key: Key
    uid: str
    taken: dict[tuple[Kind, str], NameTaken] = field(default_factory=dict)

    async def make(self, kind: Kind, manifest: Manifest) -> None:
        """Create the child if it is not there; one that is there is never changed."""
        if manifest["metadata"]["name"] not in self.cache.children(kind, self.key):
            self._await(kind, manifest, None)
            await self._create(kind, manifest)

    async def ensure(self, kind: Kind, manifest: Manifest) -> None:
        """Create the child, or change it where it differs."""
        name = manifest["metadata"]["name"]
        actual = self.cache.children(kind, self.key).get(name)
        self._await(kind, manifest, actual)
        if actual is None:
            actual = await self._create(kind, manifest)
        if not contains(actual, manifest):
            version, manifest = actual["metadata"]["resourceVersion"], _with_replicas(kind, manifest, actual)
            log.info("apply", extra=logs.of(kind=kind.kind, name=name, namespace=self.key[0]))
            if gone := withdrawn(actual, manifest):
                self.cache.put(kind, await self.cluster.replace(kind, completed(manifest, _without(actual, gone))))
                return
            applied = await self.cluster.apply(kind, manifest, resource_version=version)
            if not contains(applied, manifest):  # what it was made with is not taken back by an apply that leaves it out
                applied = await self.cluster.replace(kind, completed(manifest, applied))
            self.cache.put(kind, applied)

    async def remove(self, kind: Kind, name: str, *, foreground: bool = False) -> None:
        """Delete the child if it is there and not on its way out; `foreground`: it is seen until what it owns is gone."""
        actual = self.cache.children(kind, self.key).get(name)
        if actual is not None and "deletionTimestamp" not in actual["metadata"]:
            await self.cluster.delete(kind, self.key[0], name, uid=actual["metadata"]["uid"], foreground=foreground)
            leaving = {**actual["metadata"], "deletionTimestamp": ""}  # until the watch says so: else it is asked for again
            self.cache.put(kind, {**actual, "metadata": leaving})

    async def annotate(self, kind: Kind, name: str, annotations: Mapping[str, str]) -> None:
        """Annotate what others made for this FineTune, if it is still there."""
        try:
            self.cache.put(kind, await self.cluster.annotate(kind, self.key[0], name, annotations))
        except NotFound:
            return

    def _await(self, kind: Kind, manifest: Manifest, actual: Mapping[str, Any] | None) -> None:
        """NameTaken while what the child would mount or name is somebody else's; what needs a child that is not there waits, too."""
        for needed in needs(kind, manifest) if self.taken else ():
            if needed in self.taken:
                if actual is None:
                    self.taken[kind, manifest["metadata"]["name"]] = self.taken[needed]
                raise self.taken[needed]

    async def _create(self, kind: Kind, manifest: Manifest) -> Mapping[str, Any]:
        try:
            made = await self.cluster.create(kind, _without_annotations(manifest))
        except AlreadyExists:
            name = manifest["metadata"]["name"]
            found = await self.cluster.get(kind, self.key[0], name)
            labelled = found is not None and _labelled(found, manifest)
            if found is None or not labelled or not belongs(kind, found, self.uid):
                self.taken[kind, name] = NameTaken(kind.kind, name, labelled=labelled)
                raise self.taken[kind, name] from None
            made = found
        self.cache.put(kind, made)
        return made


def _with_replicas(kind: Kind, manifest: Manifest, actual: Mapping[str, Any]) -> Manifest:
    """A Deployment whose replicas are left to an autoscaler is applied with those it has: left out, a field that was once applied is taken
    back, and falls to its default, 1."""
    if kind is not DEPLOYMENT or "replicas" in manifest["spec"]:
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "replicas": actual["spec"].get("replicas", 1)}}


def _without_annotations(manifest: Manifest) -> Manifest:
    """Annotations are left to the apply that follows: what is made with one keeps it, whatever an apply leaves out later."""
    return {**manifest, "metadata": {key: value for key, value in manifest["metadata"].items() if key != "annotations"}}


def _labelled(found: Mapping[str, Any], manifest: Manifest) -> bool:
    labels = found["metadata"].get("labels") or {}
    return labels.get(names.MANAGED_BY) == names.FIELD_MANAGER and labels.get(names.NAME) == manifest["metadata"]["labels"][names.NAME]


def contains(actual: Any, wanted: Any) -> bool:
    """Is everything that is wanted there? What others added (defaults, status) does not count.

    Lists of objects are compared in order and length, and so are `WHOLE` mappings; an empty wanted mapping or list matches an absent one.
    """
    if actual == wanted:  # most parts are just as they were asked for, which costs a tenth of looking into them
        return True
    if isinstance(wanted, Mapping):
        given = actual if isinstance(actual, Mapping) else {}
        return all(_holds(k, given.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        given_list = actual if isinstance(actual, list) else []
        return len(given_list) == len(wanted) and all(contains(a, w) for a, w in zip(given_list, wanted, strict=True))
    if actual is None and wanted in ("", None):
        return True
    return _same_quantity(actual, wanted)


def _holds(key: str, actual: Any, wanted: Any) -> bool:
    return contains(actual, wanted) and (key not in WHOLE or contains(wanted, actual or {}))


def completed(wanted: Any, actual: Any) -> Any:
    """What is wanted, with what others added: lists have the wanted items alone, each as it is there under its name."""
    if isinstance(wanted, Mapping) and isinstance(actual, Mapping):
        others = {k: v for k, v in actual.items() if COPIES.get(k) not in wanted}
        return {**others, **{k: v if k in WHOLE else completed(v, actual.get(k)) for k, v in wanted.items()}}
    if isinstance(wanted, list) and isinstance(actual, list):
        there = {item["name"]: item for item in actual if isinstance(item, Mapping) and "name" in item}
        return [completed(item, there.get(item["name"])) if isinstance(item, Mapping) and "name" in item else item for item in wanted]
    return wanted


def withdrawn(actual: Mapping[str, Any], wanted: Manifest) -> list[str]:
    """Annotations of its pods that a child has by its own note of them (`names.POD_ANNOTATIONS`), and that are not wanted any more: of all
    others nobody knows whose they are."""
    noted = (actual["metadata"].get("annotations") or {}).get(names.POD_ANNOTATIONS, "")
    return [name for name in noted.split(",") if name and name not in _pod_annotations(wanted)]


def _pod_annotations(child: Mapping[str, Any]) -> Mapping[str, str]:
    return child["spec"]["template"]["metadata"].get("annotations") or {}


def _without(child: Mapping[str, Any], annotations: Sequence[str]) -> Manifest:
    """A child without these annotations of its pods."""
    template = child["spec"]["template"]
    left = {name: value for name, value in _pod_annotations(child).items() if name not in annotations}
    return {**child, "spec": {**child["spec"], "template": {**template, "metadata": {**template["metadata"], "annotations": left}}}}


def _same_quantity(actual: Any, wanted: Any) -> bool:
    """The API server rewrites quantities: `1000m` comes back as `1`."""
    if not (isinstance(actual, str) and isinstance(wanted, str)):
        return False
    left, right = quantity(actual), quantity(wanted)
    return left is not None and left == right
