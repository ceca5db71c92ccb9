"""The kinds that the operator reads or writes, each once, with the path of its API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from finetune_operator import names


@dataclass(frozen=True, eq=False)  # each is there once: the caches ask for one by its identity some dozen times a cycle
class Kind:
    """A resource of the API server; `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The manifests' apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of a collection or of one object; without a namespace, of the whole cluster."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")


FINETUNE: Final = Kind(names.GROUP, names.VERSION, "finetunes", names.KIND)
JOB: Final = Kind("batch", "v1", "jobs", "Job")
POD: Final = Kind("", "v1", "pods", "Pod")
DEPLOYMENT: Final = Kind("apps", "v1", "deployments", "Deployment")
CONTROLLER_REVISION: Final = Kind("apps", "v1", "controllerrevisions", "ControllerRevision")
SERVICE: Final = Kind("", "v1", "services", "Service")
CONFIGMAP: Final = Kind("", "v1", "configmaps", "ConfigMap")
PVC: Final = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
PDB: Final = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
HPA: Final = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
INGRESS: Final = Kind("networking.k8s.io", "v1", "ingresses", "Ingress")
HTTP_ROUTE: Final = Kind("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute")
EVENT: Final = Kind("", "v1", "events", "Event")
SECRET: Final = Kind("", "v1", "secrets", "Secret")
LEASE: Final = Kind("coordination.k8s.io", "v1", "leases", "Lease")
STORAGE_CLASS: Final = Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)

# Children that are cached, each selected by `names.SELECTOR`. Those that nobody but the operator changes are not watched: the
# operator knows what it made, and the sweep finds what somebody deleted.
WATCHED: Final = (JOB, POD, DEPLOYMENT, SERVICE, CONFIGMAP, PDB)
UNWATCHED: Final = (CONTROLLER_REVISION, PVC)
CHILDREN: Final = (*WATCHED, *UNWATCHED)
# Children that few FineTunes have, of kinds that not every cluster has or lets the operator make (`extras`): cached and watched from
# when the first FineTune asks for one.
EXPOSURES: Final = (INGRESS, HTTP_ROUTE)
EXTRAS: Final = (*EXPOSURES, HPA)
