"""The node's network on the host: bridge, routes, two sysctls, and the rules that others add and leave behind."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from devcluster import paths
from devcluster.shell import run

_SYSCTLS = {
    Path("/proc/sys/net/ipv4/ip_forward"): "1",
    Path("/proc/sys/net/bridge/bridge-nf-call-iptables"): "1",
}
_FAMILIES = ("iptables", "ip6tables")
# Chains of kube-proxy and the kubelet, of CNI's masquerading and port mappings; rules that name our bridge.
_OURS = re.compile(rf"(?:^:|\s)(?:KUBE-|CNI-)|\b{paths.BRIDGE}\b")


@dataclass(frozen=True)
class Listener:
    """A TCP port that somebody listens on."""

    address: str
    port: int
    pids: frozenset[int]

    def in_the_way(self, address: str, port: int) -> bool:
        """Whether nobody else can listen on this address and port."""
        return self.port == port and self.address in ("0.0.0.0", "*", "[::]", address)


def listeners() -> list[Listener]:
    return parsed_listeners(run(["ss", "-Hltnp"], check=False))


def parsed_listeners(lines: str) -> list[Listener]:
    """`ss -Hltnp`'s lines: state, two queues, local address and port, peer, users."""
    found = []
    for fields in (line.split(maxsplit=5) for line in lines.splitlines()):
        address, _, port = fields[3].rpartition(":")
        pids = frozenset(map(int, re.findall(r"pid=(\d+)", fields[5] if len(fields) > 5 else "")))
        found.append(Listener(address, int(port), pids))
    return found


def up(state: Path) -> None:
    """Make bridge, address and routes, and remember the sysctls as they were."""
    before = state / "sysctls.json"
    if shutil.which("modprobe"):  # where the kernel has them built in there is nothing to load
        run(["modprobe", "-aq", "br_netfilter", "overlay"], check=False)
    if not before.exists():
        before.write_text(json.dumps({str(file): file.read_text().strip() for file in _SYSCTLS if file.exists()}))
    for file, value in _SYSCTLS.items():
        if file.exists():
            file.write_text(value)
    if paths.BRIDGE not in _links():
        run(["ip", "link", "add", paths.BRIDGE, "type", "bridge"])
    run(["ip", "address", "replace", f"{paths.BRIDGE_ADDRESS}/16", "dev", paths.BRIDGE])
    run(["ip", "link", "set", paths.BRIDGE, "up"])
    # Without this an unknown service address would leave by the default gateway, which may well answer.
    run(["ip", "route", "replace", paths.SERVICE_CIDR, "dev", paths.BRIDGE, "src", paths.BRIDGE_ADDRESS])


def down(state: Path) -> None:
    """Remove bridge, pods' links, our firewall rules; give the sysctls back."""
    for name, master in _links().items():
        if master == paths.BRIDGE:
            run(["ip", "link", "delete", name], check=False)
    if paths.BRIDGE in _links():
        run(["ip", "link", "delete", paths.BRIDGE], check=False)
    for family in _FAMILIES:
        _clean_rules(family)
    before = state / "sysctls.json"
    if before.exists():
        for file, value in json.loads(before.read_text()).items():
            Path(file).write_text(value)
        before.unlink()


def without_ours(saved: str) -> str:
    """The output of iptables-save without the chains and rules that a node leaves."""
    return "".join(f"{line}\n" for line in saved.splitlines() if not _OURS.search(line))


def rules_left() -> list[str]:
    """Rules and chains of a node that are still there."""
    saved = [run([f"{family}-save"], check=False) for family in _FAMILIES if _has(family)]
    return [line for text in saved for line in text.splitlines() if _OURS.search(line)]


def _has(family: str) -> bool:
    return Path(f"/usr/sbin/{family}-save").exists()


def _clean_rules(family: str) -> None:
    if not _has(family):
        return
    saved = run([f"{family}-save"], check=False)
    kept = without_ours(saved)
    if kept != saved:
        run([f"{family}-restore"], stdin=kept)


def _links() -> dict[str, str]:
    """Every network link with the bridge it belongs to ("" if to none)."""
    links = json.loads(run(["ip", "-json", "link", "show"]) or "[]")
    return {link["ifname"]: link.get("master", "") for link in links}
