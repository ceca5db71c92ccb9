"""ControllerRevisions: what a revision's fields and an arm's template were when they were made. Never changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator import names
from finetune_operator.build.pods import Manifest, Owner


def keep_fields(owner: Owner, revision: str, fields: Mapping[str, Any], resolved: Mapping[str, Any], number: int) -> Manifest:
    """A revision: the Retrain fields as written, and the defaults resolved on that day."""
    return _revision(owner, revision, "revision", {"fields": dict(fields), "resolved": dict(resolved)}, number)


def keep_template(
    owner: Owner, arm: str, revision: str, fields: Mapping[str, Any], template: Manifest, number: int, artifact: str | None = None
) -> Manifest:
    """An arm: which revision it serves by which artifact (None: the base model), the Redeploy fields as written, its whole pod template."""
    data = {"revision": revision, "fields": dict(fields), "template": template, **({"artifact": artifact} if artifact else {})}
    return _revision(owner, arm, "arm", data, number)


def _revision(owner: Owner, name: str, component: str, data: Manifest, number: int) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": owner.metadata(names.controller_revision(owner.name, name), component, {names.REVISION: name}),
        "revision": number,
        "data": data,
    }
