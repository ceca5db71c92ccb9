"""Simulated pods that tell what a Prometheus scrapes, and the operator's process as the pod that discovery would find."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from aiohttp import web
from finetune_operator import names
from finetune_trainer.progress import Progress
from finetune_trainer.serve.metrics import Metrics

from tests.integration.engine import ACCOUNT, NAMESPACE, Operator
from tests.integration.kubelet import Kubelet, Object


def as_pod(operator: Operator) -> Object:
    """The chart's pod of this process."""
    ports = [{"name": "metrics", "containerPort": operator.metrics_port}]
    return {
        "metadata": {"namespace": NAMESPACE, "name": operator.identity, "labels": {"app.kubernetes.io/name": ACCOUNT}},
        "spec": {"containers": [{"name": "operator", "ports": ports}]},
        "status": {"phase": "Running", "podIP": "127.0.0.1"},
    }


class Told(Kubelet):
    """Model servers count an answer whenever they are asked, and trainers tell their progress, both in the trainer image's own words."""

    async def _applications(self, pod: Object) -> Mapping[int, web.Application]:
        labels = pod["metadata"]["labels"]
        if labels.get(names.COMPONENT) == "arm":
            return {names.MODEL_PORT: _server()}
        made = dict(await super()._applications(pod))
        if names.PROGRESS_PORT in made:
            progress = Progress("train")
            progress.update(**self.progress)
            made[names.PROGRESS_PORT].add_routes([web.get("/metrics", _answering(progress.metrics))])
        return made


def _server() -> web.Application:
    metrics = Metrics()

    def counted() -> str:
        answer: Any = SimpleNamespace(reason="stop", prompt_tokens=7, completion_tokens=5, submitted=0.0, first_token=0.1, last_token=0.2)
        metrics.observe(answer)
        return metrics.exposition().decode()

    app = web.Application()
    app.add_routes([web.get("/metrics", _answering(counted))])
    return app


def _answering(text: Any) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text())

    return answer
