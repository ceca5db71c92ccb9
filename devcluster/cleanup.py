"""Removing what a node leaves on the host: processes, mounts, network, control groups, files."""

import ctypes
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from devcluster import network, paths, procs

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = "finetune-devcluster"  # every component and whatever it starts is a member of this group
POD_GROUP = "kubepods"
_MNT_DETACH = 2
# Fixed paths of the kubelet, CNI and containerd that no option moves.
_HOST_FOLDERS = ("/var/lib/kubelet", "/var/log/containers", "/var/lib/cni")


def component_group() -> Path | None:
    """cgroup.procs of the group that components are started in, made if need be."""
    parent = CGROUPS / "pids" if (CGROUPS / "pids").is_dir() else CGROUPS
    group = parent / OWN_GROUP
    try:
        group.mkdir(exist_ok=True)
    except OSError:
        return None
    return group / "cgroup.procs"


def stop_everything(state: Path) -> None:
    """Make the host as after a reboot: no process, mount, link, rule or group of the node; its files stay."""
    _kill(state)
    for folder in _mounted(state):
        unmount_below(folder)
    network.down(state)
    _remove_groups()
    shutil.rmtree(state / "run", ignore_errors=True)  # containerd's volatile state, sockets, network namespaces
    shutil.rmtree(state / "cni" / "ipam", ignore_errors=True)
    for leftover in ("/var/lib/cni", *_shim_sockets()):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_files(state: Path) -> None:
    """After `stop_everything`: the state folder and the components' fixed paths."""
    for folder in (str(state), *_HOST_FOLDERS):
        shutil.rmtree(folder, ignore_errors=True)
    with_pods = Path("/var/log/pods")
    if with_pods.is_dir() and not any(with_pods.iterdir()):
        with_pods.rmdir()


def _kill(state: Path) -> None:
    pid_files = sorted((state / "pids").glob("*"))
    # Those that would start something again go first.
    for file in sorted(pid_files, key=lambda file: file.name not in ("kubelet", "containerd")):
        procs.stop(file)
    procs.kill_all(_members())


def own_pids(state: Path) -> set[int]:
    """Every process of the node: components, shims, pods."""
    components = {procs.running(file) for file in (state / "pids").glob("*")}
    return procs.members(_members()) | {pid for pid in components if pid is not None}


def _members() -> list[Path]:
    return [group / "cgroup.procs" for top in _groups() for group in [top, *_below(top)]]


def _groups() -> list[Path]:
    controllers = [CGROUPS, *(entry for entry in CGROUPS.iterdir() if entry.is_dir())]
    return [top / name for top in controllers for name in (OWN_GROUP, POD_GROUP) if (top / name).is_dir()]


def _below(top: Path) -> Iterable[Path]:
    """Groups inside a group, the deepest first."""
    for folder, _, _ in os.walk(top, topdown=False):
        if Path(folder) != top:
            yield Path(folder)


def _remove_groups() -> None:
    deadline = time.monotonic() + 5
    while (tops := _groups()) and time.monotonic() < deadline:
        for top in tops:
            for group in [*_below(top), top]:
                try:
                    group.rmdir()
                except OSError:
                    time.sleep(0.02)


def _mounted(state: Path) -> list[Path]:
    """Folders in which the node mounts."""
    return [state, Path("/var/lib/kubelet"), paths.unpacked_images()]


def unmount_below(folder: Path) -> None:
    """Unmount all that is mounted in a folder, the newest first; a busy mount is detached."""
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(5):
        mounts = mounts_below(folder, Path("/proc/self/mountinfo").read_text())
        for mount in reversed(mounts):
            libc.umount2(os.fsencode(mount), _MNT_DETACH)
        if not mounts:
            return


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """Mount points at or below a folder in the kernel's order (mountinfo escapes blanks as octal)."""
    points = [line.split()[4] for line in mountinfo.splitlines()]
    plain = [point.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\") for point in points]
    return [point for point in plain if point == str(folder) or point.startswith(f"{folder}/")]


def _shim_sockets() -> list[str]:
    """containerd's shims always meet in /run/containerd; another containerd's are left alone."""
    return [] if Path("/run/containerd/containerd.sock").exists() else ["/run/containerd"]


def left_behind(state: Path) -> list[str]:
    """What a `down` should have removed but is still there; empty when the host is clean."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    found = [f"mount {point}" for folder in _mounted(state) for point in mounts_below(folder, mountinfo)]
    found += [f"process {pid}" for pid in procs.members(_members())]
    found += [f"control group {group}" for group in _groups()]
    found += [f"folder {folder}" for folder in (str(state), *_HOST_FOLDERS) if Path(folder).exists()]
    if Path("/sys/class/net", paths.BRIDGE).exists():
        found.append(f"link {paths.BRIDGE}")
    found += [f"firewall rule {rule}" for rule in network.rules_left()]
    return found
