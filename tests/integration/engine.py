"""The operator as a process with the chart's rights, the API server's audit log as the counter of its writes, and a user's view."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import kopf
import yaml
from finetune_operator import kinds, names
from finetune_operator.connection import Connection
from finetune_operator.kinds import CHILDREN, FINETUNE, Kind

from devcluster import loopback
from devcluster.controlplane import ControlPlane
from tests.integration.kubelet import Admin
from tests.unit.operator.helpers import make_spec

NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "finetune-system"
ACCOUNT = "finetune-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
SECONDS = 90.0  # patience on a busy machine; what is waited for takes a few
Object = dict[str, Any]
# A user of the operator's image: no entry in passwd, nothing of its own. It may read this checkout wherever that is, for the image has
# its code where everybody can read it.
NOBODY = [
    "setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search", "--no-new-privs",
]  # fmt: skip


def install(plane: ControlPlane) -> None:
    """CRD, ServiceAccount and rights, from the chart."""
    images = ("--set", "images.operator=example.com/operator:1", "--set", "images.trainer=example.com/trainer:1")
    command = [sys.executable, str(ROOT / "charts" / "helm.py"), "--kubeconfig", str(plane.kubeconfig), "-n", NAMESPACE]
    chart = str(ROOT / "charts" / "finetune-operator")
    done = subprocess.run([*command, "upgrade", "--install", ACCOUNT, chart, "--create-namespace", *images], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plane.kubectl("wait", "--for=condition=Established", "crd/finetunes.finetune.dev", "--timeout=60s")


@contextlib.asynccontextmanager
async def administrator(plane: ControlPlane) -> AsyncIterator[Admin]:
    """The control plane's administrator."""
    async with Connection(lambda: credentials(yaml.safe_load(plane.kubeconfig.read_text()))) as connection:
        yield Admin(connection)


def credentials(kubeconfig: Mapping[str, Any]) -> kopf.ConnectionInfo:
    """Of a kubeconfig's only cluster and user."""
    cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    return kopf.ConnectionInfo(
        server=cluster["server"], ca_data=cluster["certificate-authority-data"], token=user.get("token"),
        certificate_data=user.get("client-certificate-data"), private_key_data=user.get("client-key-data"),
    )  # fmt: skip


async def until(holds: Callable[[], Any], seconds: float = SECONDS, what: str = "it") -> Any:
    """The first true value of `holds`, which may be awaitable."""
    deadline = time.monotonic() + seconds
    while True:
        value = holds()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        await asyncio.sleep(0.1)


class Operator:
    """One operator process."""

    def __init__(
        self, plane: ControlPlane, folder: Path, identity: str, *, nobody: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        self.identity = identity
        self.health, self.metrics_port = loopback.free_ports(2)
        self.log = folder / f"{identity}.log"
        token = plane.kubectl("-n", NAMESPACE, "create", "token", ACCOUNT).strip()
        document = yaml.safe_load(plane.kubeconfig.read_text())
        document["users"] = [{"name": user["name"], "user": {"token": token}} for user in document["users"]]
        kubeconfig = folder / f"{identity}.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(document))
        self._environment = {
            "PATH": os.environ["PATH"], "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1", "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(ROOT / "operator" / "src"),
            "FINETUNE_TRAINER_IMAGE": "trainer:1", "FINETUNE_ROUTER_IMAGE": "router:1", "FINETUNE_VLLM_IMAGE": "vllm:1",
            "FINETUNE_LEASE_NAMESPACE": NAMESPACE,
            "FINETUNE_IDENTITY": identity, "FINETUNE_HEALTH_PORT": str(self.health), "FINETUNE_METRICS_PORT": str(self.metrics_port),
            **(settings or {}),
        }  # fmt: skip
        self._command = [*(NOBODY if nobody else ()), sys.executable, "-m", "finetune_operator"]
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Operator:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.signal(signal.SIGKILL)
        print(f"--- {self.identity}\n{self.log.read_text()[-6000:]}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd="/", stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )

    async def signal(self, number: signal.Signals) -> int:
        """Send it, and wait for the process to end: its exit status."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)

    async def get(self, port: int, path: str) -> tuple[int, str]:
        """(status, text); status 0 while nobody listens."""
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def metrics(self) -> str:
        return (await self.get(self.metrics_port, "/metrics"))[1]

    async def ready(self) -> None:
        """Wait until /readyz says so."""

        async def asked() -> bool:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return (await self.get(self.health, "/readyz"))[0] == 200

        await until(asked, what="/readyz")

    def leads(self) -> bool:
        """Has it filled its caches as the leader (in this or an earlier life)?"""
        return '"event": "filled"' in self.log.read_text()

    async def leading(self) -> None:
        """Wait until it leads."""
        await until(self.leads, what="leading")


@dataclass(frozen=True)
class Request:
    """A request of the operator to the API server."""

    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    by: str

    @property
    def write(self) -> bool:
        return self.verb not in ("get", "list", "watch")


class Audit:
    """What the operator asked of the API server since `mark`; renewals of the Lease are left out (and Events, by the log's policy)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._seen: list[Request] = []

    def mark(self) -> None:
        self._offset = self._path.stat().st_size
        self._seen = []

    def requests(self) -> list[Request]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is still being written
                self._offset += len(line)
                entry = json.loads(line) if USER.encode() in line else {"user": {"username": ""}}
                if entry["user"]["username"] == USER and entry.get("objectRef", {}).get("resource") != "leases":
                    self._seen.append(_request(entry))
        return list(self._seen)

    def writes(self, namespace: str | None = None) -> list[Request]:
        return [r for r in self.requests() if r.write and namespace in (None, r.namespace)]

    def made(self, namespace: str) -> Counter[tuple[str, str]]:
        """How often each (resource, name) was created."""
        return Counter((r.resource, r.name) for r in self.writes(namespace) if r.verb == "create" and r.code == 201)


def _request(entry: Mapping[str, Any]) -> Request:
    ref, credential = entry.get("objectRef", {}), entry["user"].get("extra", {}).get("authentication.kubernetes.io/credential-id", [""])
    subresource = f"/{ref['subresource']}" if ref.get("subresource") else ""
    return Request(
        entry["verb"], ref.get("resource", "") + subresource, ref.get("namespace", ""), ref.get("name", ""),
        entry.get("responseStatus", {}).get("code", 0), credential[0],
    )  # fmt: skip


@dataclass(frozen=True)
class Space:
    """A namespace, as its user has it."""

    admin: Admin
    name: str

    @classmethod
    async def new(cls, admin: Admin, name: str) -> Self:
        """A namespace that is made for it."""
        await admin.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return cls(admin, name)

    async def make(self, name: str = "bot", **changes: Any) -> None:
        """Create a FineTune: the tests' spec with blocks replaced (None: left out); without `serving` unless it is given."""
        spec = make_spec(**{"serving": None, "rollout": None, **changes})
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name, "namespace": self.name}, "spec": spec}
        await self.admin.create(FINETUNE, body)

    async def edit(self, name: str = "bot", **spec: Any) -> None:
        await self.admin.patch(FINETUNE, self.name, name, {"spec": spec})

    async def status(self, name: str = "bot") -> Object:
        found = await self.admin.get(FINETUNE, self.name, name)
        return dict((found or {}).get("status") or {})

    async def wait(self, holds: Callable[[Object], Any], name: str = "bot", seconds: float = SECONDS) -> Object:
        """The status, once it is so."""
        deadline = time.monotonic() + seconds
        while True:
            status = await self.status(name)
            if holds(status):
                return status
            assert time.monotonic() < deadline, json.dumps(status, indent=1)
            await asyncio.sleep(0.15)

    async def phase(self, wanted: str, name: str = "bot", seconds: float = SECONDS) -> Object:
        return await self.wait(lambda s: s.get("phase") == wanted, name, seconds)

    async def children(self, kinds_: tuple[Kind, ...] = CHILDREN) -> dict[tuple[str, str], str]:
        """resourceVersion by resource and name, without pods: the FineTunes and what the operator made."""
        found = {}
        for kind in (FINETUNE, *kinds_):
            if kind is not kinds.POD:
                for obj in await self.admin.list(kind, self.name, names.SELECTOR if kind is not FINETUNE else ""):
                    found[kind.plural, obj["metadata"]["name"]] = obj["metadata"]["resourceVersion"]
        return found

    async def pods(self, job: str) -> list[Object]:
        return await self.admin.list(kinds.POD, self.name, f"batch.kubernetes.io/job-name={job}")


def ready(status: Mapping[str, Any]) -> Object:
    """The condition Ready."""
    return next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
