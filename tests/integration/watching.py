"""Debian's Prometheus on loopback, configured as docs/observability.md says, and pods that tell what it scrapes.

Debian builds it without discovery in Kubernetes: a file has what that would find, label by label, so the relabelling is as documented.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import yaml
from aiohttp import web
from finetune_operator import kinds, names
from finetune_trainer.progress import Progress
from finetune_trainer.serve.metrics import Metrics

from devcluster import prometheus
from devcluster.controlplane import ControlPlane, _free_ports
from tests.integration.engine import NAMESPACE, until
from tests.integration.kubelet import Admin, Kubelet, Object, repeating

ROOT: Final = Path(__file__).resolve().parents[2]
FILES: Final = ROOT / "charts" / "finetune-operator" / "files"
ALERTS: Final = FILES / "alerts.yaml"
WINDOW: Final = "5s"  # of rates; a scrape a second


def documented() -> Object:
    """The scrape configuration in the documentation."""
    blocks = re.findall(r"```yaml\n(scrape_configs:.*?)```", (ROOT / "docs" / "observability.md").read_text(), re.DOTALL)
    found: Object = yaml.safe_load(blocks[0])
    return found


def rules() -> list[Object]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def hurried() -> str:
    """The rules with windows of seconds and without patience."""
    return re.sub(r"\[\d+m\]", f"[{WINDOW}]", re.sub(r"^ *for: .*\n", "", ALERTS.read_text(), flags=re.MULTILINE))


def dashboard() -> Iterator[tuple[str, str]]:
    """(panel, query) with Grafana's variables put in, of all FineTunes; an annotation's without its comparison, which holds at moments."""
    document = json.loads((FILES / "dashboard.json").read_text())
    shown = [(panel["title"], target["expr"]) for panel in document["panels"] for target in panel.get("targets", ())]
    for title, expression in [*shown, *((a["name"], a["expr"].removesuffix(" > 0")) for a in document["annotations"]["list"])]:
        yield title, expression.replace("$__rate_interval", WINDOW).replace("$namespace", ".*").replace("$name", ".*")


class Watching:
    """A Prometheus of its own, which can be stopped and goes on with what it has."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self._plane = plane
        (self.port,) = _free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._home = folder / "prometheus"
        self._home.mkdir()
        (self._home / "alerts.yaml").write_text(hurried())
        self._process: subprocess.Popen[bytes] | None = None
        self._found: list[Object] = []  # targets

    def scrape(self, metrics_port: int) -> None:
        """The operator there, and the pods that are found while `following`."""
        (self._home / "prometheus.yaml").write_text(yaml.safe_dump(_configuration(metrics_port)))

    async def start(self) -> None:
        program = prometheus.unpacked("prometheus")
        self._process = self._plane.spawn(
            "prometheus",
            [
                str(program), f"--config.file={self._home}/prometheus.yaml", f"--storage.tsdb.path={self._home}/data",
                f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
                f"--query.lookback-delta={WINDOW}",  # else what went while it was away is there for five minutes
            ],
        )  # fmt: skip
        await until(self._ready, what="Prometheus")

    def following(self, admin: Admin) -> contextlib.AbstractAsyncContextManager[None]:
        """It finds the operator's pods while the block lasts."""
        return repeating(partial(self._find, admin), 0.3)

    async def _find(self, admin: Admin) -> None:
        found = [target for pod in await admin.list(kinds.POD, label_selector=names.SELECTOR) for target in _targets(pod)]
        if found != self._found:
            draft = self._home / "draft"
            draft.write_text(json.dumps(found))
            draft.rename(self._home / "pods.json")
            self._found = found

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    async def query(self, expression: str) -> list[Object]:
        """The series that it finds; what it does not understand is an assertion."""
        answer = await self._get("/api/v1/query", query=expression)
        assert answer["status"] == "success", f"{expression}: {answer}"
        found: list[Object] = answer["data"]["result"]
        return found

    async def fires(self, alert: str, **labels: str) -> bool:
        """Does the alert fire now? What it tells people is then checked too."""
        found = [a for a in (await self._get("/api/v1/alerts"))["data"]["alerts"] if a["labels"]["alertname"] == alert]
        for each in found:
            assert "<error" not in str(each["annotations"]), each
            assert "<no value>" not in str(each["annotations"]), each
        return any(a["state"] == "firing" and labels.items() <= a["labels"].items() for a in found)

    async def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._plane.log("prometheus")
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def _get(self, path: str, **asked: str) -> Object:
        async with aiohttp.ClientSession() as session, session.get(self.url + path, params=asked) as response:
            found: Object = await response.json()
            return found


def _targets(pod: Object) -> Iterator[Object]:
    """What discovery of role `pod` makes of it: a target for each port of a container."""
    meta, status = pod["metadata"], pod["status"]
    labels = {f"__meta_kubernetes_pod_label_{re.sub('[^A-Za-z0-9_]', '_', name)}": value for name, value in meta["labels"].items()}
    labels |= {"__meta_kubernetes_namespace": meta["namespace"], "__meta_kubernetes_pod_name": meta["name"]}
    labels |= {"__meta_kubernetes_pod_phase": status["phase"]}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if status.get("podIP"):
                named = {"__meta_kubernetes_pod_container_port_name": port["name"]}
                yield {"targets": [f"{status['podIP']}:{port['containerPort']}"], "labels": labels | named}


def _configuration(metrics_port: int) -> Object:
    """The documented one; the operator is a process here, not a pod."""
    jobs = documented()["scrape_configs"]
    for job in jobs:
        if job["job_name"] == "finetune-operator":
            job["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"], "labels": {"namespace": NAMESPACE}}]
            del job["kubernetes_sd_configs"], job["relabel_configs"]
        else:
            (found,) = job.pop("kubernetes_sd_configs")
            assert found == {"role": "pod", "selectors": [{"role": "pod", "label": names.SELECTOR}]}
            job["file_sd_configs"] = [{"files": ["pods.json"], "refresh_interval": "1s"}]
    seconds = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": seconds, "rule_files": ["alerts.yaml"], "scrape_configs": jobs}


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
