"""A real Envoy on loopback with the operator's own documents: only addresses, ports and folders are put in place of a pod's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from finetune_operator import kinds, names, tokens
from finetune_operator.api.blocks.serving import Serving
from finetune_operator.api.spec import Spec
from finetune_operator.build import drain, envoy, listeners, router
from finetune_operator.build.exposure_log import KEY_VARIABLE, Exposures
from finetune_operator.build.pods import Owner
from finetune_operator.pods import PodClient
from finetune_operator.traffic import Backend as Arm
from finetune_operator.traffic import RouterState, Source, Structure
from yarl import URL

from devcluster.loopback import free_ports

SPEC = Spec.model_validate({"model": {"source": "image:///m"}, "data": {"train": {"source": "image:///d"}}, "method": {"type": "LoRA"}})
UID = "0b6c1d2e-aaaa-bbbb-cccc-000000000001"
OWNER = Owner("ml", "bot", UID)
KEY = tokens.generate_key()
SALT = "5d41402abc4b2a76"
PORTS = (names.TRAFFIC_PORT, names.TLS_PORT, names.CONTROL_PORT, names.ROUTER_METRICS_PORT, names.DRAIN_PORT, envoy.ADMIN_PORT)
CHAT = "/v1/chat/completions"
DOMAIN = "ml.svc.cluster.local"


BY_HEADER = (Source(header="x-user-id"),)


def structure(stable: Arm, canary: Arm | None = None, identity: tuple[Source, ...] = BY_HEADER, salt: str = SALT) -> Structure:
    return Structure(stable, canary, salt, identity)


def name_of(arm: Arm) -> str:
    """What the cluster's name server calls the arm's headless Service."""
    return f"{arm.host}.{DOMAIN}"


class Envoy:
    """A process of Envoy and what it logs."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, command: Sequence[str], ready: Callable[[], Awaitable[bool]], environment: Mapping[str, str] | None = None) -> None:
        """Start it and wait until `ready` says so."""

        async def is_ready() -> bool:
            assert self._process is not None
            assert self._process.returncode is None, self.log()
            return await ready()

        # c-ares reads its search list from here, as it does from a pod's resolv.conf
        variables = {**os.environ, "LOCALDOMAIN": DOMAIN, "RES_OPTIONS": "ndots:5", **(environment or {})}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=variables)
        await until(is_ready, "Envoy is ready", 15, self.log)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def terminate(self, seconds: float) -> bool:
        """SIGTERM, and SIGKILL where that does not end it within so many seconds; did it end by itself?"""
        assert self._process is not None
        self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), seconds) in (0, -signal.SIGTERM)
        except TimeoutError:
            await self.kill()
            return False

    def lines(self) -> list[dict[str, Any]]:
        """What it logged of users, a line of JSON each."""
        return [json.loads(line) for line in self.log_lines() if line.startswith("{")]

    def log_lines(self) -> list[str]:
        """All that Envoy said."""
        return self._log.read_text().splitlines()

    async def kill(self) -> None:
        """SIGKILL, as the kubelet's last word."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    def log(self) -> str:
        """The end of what Envoy said."""
        return self._log.read_text()[-3000:]


def sync(folder: Path, files: Mapping[str, str]) -> None:
    """Write them as the kubelet writes a ConfigMap or Secret: a dated folder, `..data` renamed over, symlinks."""
    previous = (folder / "..data").resolve() if (folder / "..data").exists() else None
    dated = folder / f"..{time.monotonic_ns()}"
    dated.mkdir(parents=True)
    for name, text in files.items():
        (dated / name).write_text(text)
    fresh = folder / "..data_tmp"
    fresh.symlink_to(dated.name)
    fresh.rename(folder / "..data")
    for name in files:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
    if previous is not None:
        shutil.rmtree(previous)


class Router(Envoy):
    """A router. Its folder stands for the mount of its ConfigMap; those of its Secrets are beside it."""

    def __init__(self, folder: Path, model_port: int, dns_port: int) -> None:
        super().__init__(folder.with_suffix(".log"))
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._replaced = {**self.ports, names.MODEL_PORT: model_port}
        self._dns_port = dns_port
        self.connection_seconds: int | None = None
        self.drain_seconds: int | None = None
        self._first: Structure | None = None
        self.serving: Serving | None = None
        self.exposures: Exposures | None = None
        self.exposure_key = ""
        self.started = ""
        self.client = PodClient(lambda ip, port: f"http://127.0.0.1:{self.ports[port]}")
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def write(self, wanted: Structure, weight: int) -> None:
        """Sync the ConfigMap's volume."""
        self._first = self._first or wanted
        made = router.documents(self.serving, wanted, weight, tokens.jwks(KEY), UID, self.exposures)
        renewed = '"max_connection_duration":"{}s"'
        made["lds.json"] = _sooner(made["lds.json"], renewed, listeners.CONNECTION_SECONDS, self.connection_seconds)
        sync(self.folder, {name: json.dumps(self._local(json.loads(text))) for name, text in made.items()})

    def secret(self, mounted: str, files: Mapping[str, str]) -> None:
        """Sync a Secret's volume that is mounted there."""
        sync(Path(self._local(mounted)), files)

    def _local(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._replaced.get(v, v) if k == "port_value" else self._local(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self._local(v) for v in value]
        return value.replace(envoy.CONFIG, str(self.folder)) if isinstance(value, str) else value

    def _pod(self) -> dict[str, Any]:
        spec = SPEC.model_copy(update={"serving": self.serving})
        made = router.children(OWNER, spec, "envoy", self._first, 0, tokens.jwks(KEY))
        deployment = next(manifest for kind, manifest in made if kind == kinds.DEPLOYMENT)
        pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
        return pod

    def _command(self, container: Mapping[str, Any]) -> list[str]:
        """The container's command line, with the test's name server in place of the cluster's."""
        arguments = [a.replace("$(POD_NAME)", "router-0") for a in container["args"]]
        at = arguments.index("--config-yaml") + 1
        bootstrap = self._local(json.loads(_sooner(arguments[at], '"seconds":{}', drain.LEAST_SECONDS, self.drain_seconds)))
        bootstrap["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": self._dns_port}}],
            },
        }
        arguments[at] = json.dumps(bootstrap)
        return [*container["command"], *arguments, "--file-flush-interval-msec", "20"]  # a test waits for no line of its log

    async def start(self) -> Router:
        (container,) = self._pod()["containers"]
        given = (v for v in container["env"] if "fieldRef" not in v.get("valueFrom", {}))
        secrets = {variable["name"]: variable.get("value", "from a Secret") for variable in given}
        self.started = datetime.now(UTC).isoformat()
        secrets |= {KEY_VARIABLE: self.exposure_key} if self.exposure_key else {}
        await self.run(self._command(container), self._is_ready, secrets)
        return self

    async def _is_ready(self) -> bool:
        try:
            return await self.status("/ready", names.ROUTER_METRICS_PORT) == 200
        except aiohttp.ClientError:
            return False

    async def deleted(self) -> bool:
        """What the kubelet does when the pod is deleted: the container's hook, SIGTERM, and SIGKILL when the grace is over. Did it end by
        itself? A hook that fails is left, as the kubelet does."""
        pod = self._pod()
        (container,) = pod["containers"]
        grace = asyncio.get_running_loop().time() + pod["terminationGracePeriodSeconds"]
        hook = container["lifecycle"]["preStop"]["httpGet"]
        port = next(p["containerPort"] for p in container["ports"] if p["name"] == hook["port"])
        headers = {header["name"]: header["value"] for header in hook["httpHeaders"]}
        timeout = aiohttp.ClientTimeout(total=pod["terminationGracePeriodSeconds"])
        with suppress(aiohttp.ClientError):
            await self.status(hook["path"], port, headers=headers, timeout=timeout)
        return await self.terminate(grace - asyncio.get_running_loop().time())

    async def close(self) -> None:
        await self.kill()
        await self.client.close()
        await self._http.close()

    def url(self, path: str, port: int = names.TRAFFIC_PORT) -> str:
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    def request(self, method: str, path: str, port: int = names.TRAFFIC_PORT, **options: Any) -> Any:
        """aiohttp's request; use it with `async with`."""
        return self._http.request(method, URL(self.url(path, port), encoded=True), **options)

    async def status(self, path: str, port: int = names.TRAFFIC_PORT, method: str = "GET", **options: Any) -> int:
        async with self.request(method, path, port, **options) as answer:
            await answer.read()
            return int(answer.status)

    async def arm_of(self, user: str | None, path: str = CHAT, header: str = "x-user-id", **options: Any) -> str:
        """The arm that answers this user; the status when it is an error."""
        headers = {**options.pop("headers", {}), **({header: user} if user is not None else {})}
        async with self.request("POST", path, headers=headers, json={"model": "m"}, **options) as answer:
            await answer.read()
            return str(answer.headers[router.ARM_HEADER]) if answer.status == 200 else str(answer.status)

    async def assignment(self, users: list[str], path: str = CHAT) -> dict[str, str]:
        """User → arm."""
        slots = asyncio.Semaphore(32)

        async def ask(user: str) -> tuple[str, str]:
            async with slots:
                return user, await self.arm_of(user, path)

        return dict(await asyncio.gather(*(ask(u) for u in users)))

    def pod(self) -> Mapping[str, Any]:
        status = {"podIP": "127.0.0.1", "startTime": self.started, "conditions": [{"type": "Ready", "status": "True"}]}
        return {"metadata": {"name": "router-0"}, "status": status}

    async def state(self) -> RouterState:
        return await self.client.router_state(self.pod(), token())

    async def push(self, wanted: Structure, weight: int) -> None:
        await self.client.push("127.0.0.1", token(), wanted, weight)

    async def serves(self, wanted: Structure, weight: int) -> None:
        """Wait until the router says so."""

        async def said() -> bool:
            state = await self.state()
            return (state.version, state.weight) == (wanted.version, weight)

        await until(said, f"the router serves {wanted.version} at {weight} %", 10, self.log)


def _sooner(text: str, written: str, least: int, wanted: int | None) -> str:
    """A test waits neither as long as a connection lives nor as long as a router stays."""
    if wanted is None:
        return text
    assert written.format(least) in text
    return text.replace(written.format(least), written.format(wanted))


def token(key: str = KEY, audience: str = UID, now: datetime | None = None) -> str:
    return tokens.sign(key, audience, now or datetime.now(UTC))


async def until(condition: Any, what: str, seconds: float = 5.0, explain: Any = lambda: "") -> None:
    """Wait for a condition (a function, or a coroutine function)."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = condition()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what} {explain()}"
        await asyncio.sleep(0.02)
