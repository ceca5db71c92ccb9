"""The Debian packages that the node and the image builds need."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from devcluster.shell import DevclusterError, run, say

# A file of each package shows whether it is there; nothing is asked of dpkg when all are.
NODE: Mapping[str, str] = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/usr/bin/ip",
    "conntrack": "/usr/sbin/conntrack",
    "socat": "/usr/bin/socat",
    "ethtool": "/usr/sbin/ethtool",
    "docker-registry": "/usr/bin/docker-registry",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdlib.h",
    "openssl": "/usr/bin/openssl",
}
IMAGES: Mapping[str, str] = {
    "buildah": "/usr/bin/buildah",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "docker-registry": "/usr/bin/docker-registry",
    "git": "/usr/bin/git",
}
CONTROL_PLANE: Mapping[str, str] = {"openssl": "/usr/bin/openssl"}
GO: Mapping[str, str] = {"python3-venv": "/usr/share/doc/python3-venv"}

_POLICY = Path("/usr/sbin/policy-rc.d")


def ensure(wanted: Mapping[str, str]) -> list[str]:
    """Install what is missing without starting any service; returns the packages installed."""
    missing = [name for name, file in wanted.items() if not Path(file).exists()]
    if not missing:
        return []
    if shutil.which("apt-get") is None:
        raise DevclusterError(f"install these with your package manager, then try again: {' '.join(missing)}")
    say(f"installing Debian packages: {' '.join(missing)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    with _no_services():
        run(["apt-get", "update", "-qq"], env=environment, check=False)
        run(install, env=environment)
    return missing


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """While packages are configured, invoke-rc.d is told that no service may be started."""
    before = _POLICY.read_bytes() if _POLICY.exists() else None
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            _POLICY.unlink(missing_ok=True)
        else:
            _POLICY.write_bytes(before)
