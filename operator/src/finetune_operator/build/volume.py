"""The work volume: models, data, checkpoints and artifacts of one FineTune."""

from __future__ import annotations

from finetune_operator import names
from finetune_operator.api.blocks.storage import Storage
from finetune_operator.build.pods import Manifest, Owner


def claim(owner: Owner, storage: Storage) -> Manifest:
    """The claim; one that is to be retained has no owner, so that deleting the FineTune keeps it."""
    spec: Manifest = {"accessModes": [storage.access_mode], "resources": {"requests": {"storage": storage.size}}}
    if storage.storage_class_name:
        spec["storageClassName"] = storage.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": owner.metadata(names.work_volume(owner.name), "volume", owned=not storage.retain),
        "spec": spec,
    }
