"""One simulated machine for a whole life: it binds every pod to itself, whatever its volumes, and runs it as the tests' kubelet does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from finetune_operator import kinds, names

from tests.integration.kubelet import ERRORS, Admin, Kubelet, _begun

Object = dict[str, Any]
AT_ONCE: Final = 16  # pods
UNENDED: Final = "status.phase!=Succeeded,status.phase!=Failed"


class Machine(Kubelet):
    """It looks at pods that have not ended. One that `rests` does nothing more; what its pods answered they go on answering."""

    def __init__(self, admin: Admin) -> None:
        super().__init__(admin, beats=False)
        self.rests = False

    async def _turn(self) -> None:
        found = [] if self.rests else await self.admin.list(kinds.POD, label_selector=names.SELECTOR, field_selector=UNENDED)
        self._gangs = _begun(found)
        left = iter(found)

        async def worker() -> None:
            for pod in left:
                with contextlib.suppress(*ERRORS):
                    await (self._pod(pod) if pod["spec"].get("nodeName") else self._bind(pod))

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    async def _bind(self, pod: Object) -> None:
        meta, target = pod["metadata"], {"apiVersion": "v1", "kind": "Node", "name": self.nodes[0]["metadata"]["name"]}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": meta["name"], "namespace": meta["namespace"]}, "target": target}
        await self.admin._request("POST", f"{kinds.POD.path(meta['namespace'], meta['name'])}/binding", bytes, body=body)
