"""Debian's Prometheus on loopback, configured as docs/observability.md says, and what it saw of dashboard and alerts.

Debian builds it without discovery in Kubernetes: a file has what that would find, label by label, so the relabelling is as documented.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml
from finetune_operator import names

from devcluster import loopback, prometheus

ROOT: Final = Path(__file__).resolve().parents[1]
FILES: Final = ROOT / "charts" / "finetune-operator" / "files"
ALERTS: Final = FILES / "alerts.yaml"
WINDOW: Final = "5s"  # of rates; a scrape a second
LOOK_SECONDS: Final = 1.0
Object = dict[str, Any]


def documented() -> Object:
    """The scrape configuration in the documentation."""
    blocks = re.findall(r"```yaml\n(scrape_configs:.*?)```", (ROOT / "docs" / "observability.md").read_text(), re.DOTALL)
    found: Object = yaml.safe_load(blocks[0])
    return found


def documented_ports() -> set[str]:
    """Those that Prometheus needs, by the table in the documentation."""
    page = (ROOT / "docs" / "contracts.md").read_text()
    return set(re.findall(r"^\| (?:operator, )?Prometheus \| \S+ \| (\d+)", page, re.MULTILINE))


def rules() -> list[Object]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def hurried() -> str:
    """The rules with windows of seconds and without patience."""
    return re.sub(r"\[\d+m\]", f"[{WINDOW}]", re.sub(r"^ *for: .*\n", "", ALERTS.read_text(), flags=re.MULTILINE))


def dashboard(namespace: str = ".*", name: str = ".*") -> Iterator[tuple[str, str]]:
    """(panel, query) with Grafana's variables put in; an annotation's without its comparison, which holds at moments."""
    document = json.loads((FILES / "dashboard.json").read_text())
    shown = [(panel["title"], target["expr"]) for panel in document["panels"] for target in panel.get("targets", ())]
    for title, expression in [*shown, *((a["name"], a["expr"].removesuffix(" > 0")) for a in document["annotations"]["list"])]:
        yield title, expression.replace("$__rate_interval", WINDOW).replace("$namespace", namespace).replace("$name", name)


class Watching:
    """A Prometheus of its own that scrapes pods, found anew every second; stopped, it goes on with what it has.

    `pods` are all of a cluster, or None while it does not answer. Neither Prometheus nor the search outlives the block.
    """

    def __init__(self, folder: Path, pods: Callable[[], list[Object] | None]) -> None:
        (port,) = loopback.free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._home, self._pods = folder, pods
        self._listen = f"--web.listen-address=127.0.0.1:{port}"
        (folder / "alerts.yaml").write_text(hurried())
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration()))
        self._began = time.time()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._finding = threading.Thread(target=self._find)

    def __enter__(self) -> Self:
        self.start()
        self._finding.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._finding.join()
        self.stop()

    def start(self) -> None:
        program = str(prometheus.unpacked("prometheus"))
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig", "KILL", program, f"--config.file={self._home}/prometheus.yaml",
                    f"--storage.tsdb.path={self._home}/data", self._listen, "--log.level=warn",
                    f"--query.lookback-delta={WINDOW}",  # else what went while it was away is there for five minutes
                ],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            )  # fmt: skip

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    async def ready(self) -> bool:
        """Does it answer yet?"""
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        return False

    async def query(self, expression: str) -> list[Object]:
        """The series that it finds now; what it does not understand is an assertion."""
        return await self._found("query", query=expression)

    async def seen(self, expression: str) -> list[dict[str, str]]:
        """Labels of the series that ever had a number, looking at every second since it began."""
        series = await self._found("query_range", query=expression, start=self._began, end=time.time(), step=1)
        return [each["metric"] for each in series if any(math.isfinite(float(value)) for _, value in each["values"])]

    async def lacking(self, queries: Iterator[tuple[str, str]]) -> list[tuple[str, str]]:
        """Of (title, query) those that never had a number."""
        return [(title, query) for title, query in queries if not await self.seen(query)]

    async def fires(self, alert: str, **labels: str) -> bool:
        """Does the alert fire now? What it tells people is then checked too."""
        found = [a for a in (await self._get("alerts"))["alerts"] if a["labels"]["alertname"] == alert]
        for each in found:
            assert "<error" not in str(each["annotations"]), each
            assert "<no value>" not in str(each["annotations"]), each
        return any(a["state"] == "firing" and labels.items() <= a["labels"].items() for a in found)

    async def told(self, alert: str, *, seconds: float = 30, **labels: str) -> None:
        """Wait until the alert fires, or see that it did."""
        matched = "".join(f', {name}="{value}"' for name, value in labels.items())
        deadline = time.monotonic() + seconds
        while not (await self.fires(alert, **labels) or await self.seen(f'ALERTS{{alertname="{alert}", alertstate="firing"{matched}}}')):
            assert time.monotonic() < deadline, f"{alert} {labels} has not fired after {seconds:.0f} s"
            await asyncio.sleep(0.3)

    async def resolved(self, alert: str, *, seconds: float = 90, **labels: str) -> None:
        """Wait until the alert does not fire."""
        deadline = time.monotonic() + seconds
        while await self.fires(alert, **labels):
            assert time.monotonic() < deadline, f"{alert} {labels} still fires after {seconds:.0f} s"
            await asyncio.sleep(0.3)

    @property
    def _log(self) -> Path:
        return self._home / "prometheus.log"

    def _find(self) -> None:
        found: list[Object] = []
        while not self._over.wait(LOOK_SECONDS):
            pods = self._pods()
            now = found if pods is None else [target for pod in pods for target in targets(pod)]
            if now != found:
                draft = self._home / "draft"
                draft.write_text(json.dumps(now))
                draft.rename(self._home / "pods.json")
                found = now

    async def _found(self, path: str, **asked: str | float) -> list[Object]:
        found: list[Object] = (await self._get(path, **asked))["result"]
        return found

    async def _get(self, path: str, **asked: str | float) -> Object:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/api/v1/{path}", params=asked) as response:
            answer: Object = await response.json()
        assert answer["status"] == "success", f"{asked}: {answer}"
        data: Object = answer["data"]
        return data


def targets(pod: Object) -> Iterator[Object]:
    """What discovery of role `pod` makes of it: a target for each port of a container, once the pod has an address."""
    meta, status = pod["metadata"], pod["status"]
    labels = {f"__meta_kubernetes_pod_label_{_as_label(name)}": value for name, value in (meta.get("labels") or {}).items()}
    labels |= {"__meta_kubernetes_namespace": meta["namespace"], "__meta_kubernetes_pod_name": meta["name"]}
    labels |= {"__meta_kubernetes_pod_phase": status["phase"]}
    containers = [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]
    for container in containers if status.get("podIP") else ():
        for port in container.get("ports") or ():
            named = {"__meta_kubernetes_pod_container_port_name": port.get("name", "")}
            yield {"targets": [f"{status['podIP']}:{port['containerPort']}"], "labels": labels | named}


def configuration() -> Object:
    """The documented one, with a file in discovery's place; its selector, for which the API server would look, is one more rule."""
    jobs = documented()["scrape_configs"]
    for job in jobs:
        (asked,) = job.pop("kubernetes_sd_configs")
        assert asked.pop("role") == "pod"
        selectors = [selector["label"] for selector in asked.pop("selectors", ())]
        assert (selectors, asked) in (([], {}), ([names.SELECTOR], {}))
        job["file_sd_configs"] = [{"files": ["pods.json"], "refresh_interval": "1s"}]
        job["relabel_configs"] = [*map(_kept, selectors), *job["relabel_configs"]]
    seconds = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    return {"global": seconds, "rule_files": ["alerts.yaml"], "scrape_configs": jobs}


def _kept(selector: str) -> Object:
    name, _, value = selector.partition("=")
    return {"source_labels": [f"__meta_kubernetes_pod_label_{_as_label(name)}"], "regex": value, "action": "keep"}


def _as_label(name: str) -> str:
    return re.sub("[^A-Za-z0-9_]", "_", name)
