"""What a fresh node needs inside the API: the default StorageClass and the rights of our own two components."""

import json
from typing import Any

_RBAC = "rbac.authorization.k8s.io"


def bootstrap() -> str:
    """One List for `kubectl apply -f -`."""
    items = [_storage_class(), *_coredns(), *_provisioner()]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "finetune.dev/local-path",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def _coredns() -> list[dict[str, Any]]:
    verbs = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
    ]
    return [_role("finetune.dev:coredns", rules), _binding("finetune.dev:coredns", "finetune.dev:coredns")]


def _provisioner() -> list[dict[str, Any]]:
    user = "finetune.dev:provisioner"
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    return [_role(user, rules), _binding(user, user), _binding("system:persistent-volume-provisioner", user)]


def _role(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}


def _binding(role: str, user: str) -> dict[str, Any]:
    name = user if role == user else f"{user}:volumes"
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }
