"""Three hundred machines with GPUs, by hand: nodes for the real scheduler, and pods that end as each test's script says.

Products, taints and sizes are those of a mixed cluster; the labels are GPU feature discovery's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import yaml
from finetune_operator import kinds, names

from tests.integration.kubelet import Admin, Kubelet, Object, node
from tests.unit.operator.world import Outcome

PRODUCT: Final = "nvidia.com/gpu.product"
TAINT: Final = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
VALUES: Final = Path(__file__).resolve().parents[2] / "charts" / "finetune-operator" / "values.yaml"
# product, machines, GPUs in each
MACHINES: Final = (
    ("NVIDIA-H100-80GB-HBM3", 80, 8), ("NVIDIA-H100-PCIe", 10, 4), ("NVIDIA-H200", 40, 8), ("NVIDIA-A100-SXM4-80GB", 60, 8),
    ("NVIDIA-A100-SXM4-40GB", 50, 8), ("NVIDIA-A100-PCIE-40GB", 10, 4), ("NVIDIA-L40S", 30, 4),
)  # fmt: skip
WITHOUT_GPUS: Final = 20
Script = Callable[[Object], Outcome | None]


def machines() -> Iterator[Object]:
    """The nodes, named by product and number."""
    for product, count, gpus in MACHINES:
        size = {"cpu": "96", "memory": "1Ti", "pods": "110", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)}
        for number in range(count):
            yield node(f"{product.lower()}-{number}", size, {PRODUCT: product}, [TAINT])
    for number in range(WITHOUT_GPUS):
        yield node(f"cpu-{number}", {"cpu": "32", "memory": "128Gi", "pods": "110", "ephemeral-storage": "1Ti"})


def profiles(folder: Path) -> Path:
    """The chart's profiles, as the operator reads them."""
    file = folder / "profiles.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(VALUES.read_text())["profiles"]))
    return file


class Fleet(Kubelet):
    """Runs the pods of all machines. A namespace's script is asked of each rank that trains: how it ends now, or None: as `outcomes` say;
    what it tells is how far rank 0 says that it is.

    A rank that is asked to stop exits as one that has saved its checkpoint.
    """

    def __init__(self, admin: Admin) -> None:
        super().__init__(admin, list(machines()), beats=False)
        self.scripts: dict[str, Script] = {}
        self.tells: dict[str, Callable[[Object], Object]] = {}

    def said(self, pod: Object) -> Object:
        tells = self.tells.get(pod["metadata"]["namespace"])
        return tells(pod) if tells else super().said(pod)

    async def evict(self, pod: Object) -> None:
        """Through the eviction API, as a drain does."""
        meta = pod["metadata"]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": meta["name"], "namespace": meta["namespace"]}}
        await self.admin._request("POST", f"{kinds.POD.path(meta['namespace'], meta['name'])}/eviction", bytes, body=eviction)

    async def _go_on(self, pod: Object, stage: str) -> None:
        script = self.scripts.get(pod["metadata"]["namespace"])
        ends = script(pod) if script and stage == "train" else None
        if ends is None:
            await super()._go_on(pod, stage)
        elif not ends.never:
            await self._status(pod, self._ended(pod, ends))

    def _ended(self, pod: Object, outcome: Outcome) -> Object:
        trains = pod["metadata"]["labels"].get(names.STAGE) == "train"
        return super()._ended(pod, Outcome(code=names.STOPPED) if trains and outcome.code == 143 else outcome)
