"""Certificates and keys by openssl: a CA, one certificate per identity, and the service account key pair."""

from collections.abc import Sequence
from pathlib import Path

from devcluster.shell import run

_DAYS = "3650"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

# Identities of the components as RBAC's built-in bindings know them.
CLIENTS = {
    "admin": "/O=system:masters/CN=devcluster-admin",
    "apiserver-kubelet": "/O=system:masters/CN=devcluster-apiserver",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "coredns": "/CN=finetune.dev:coredns",
    "provisioner": "/CN=finetune.dev:provisioner",
}


def ensure(folder: Path, *, clients: dict[str, str], server_names: Sequence[str]) -> None:
    """Make what is missing in `folder`: ca, serving, service-account, and `<name>.crt/.key` for each client."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / "ca.crt").exists():
        _new(folder / "ca", "/CN=devcluster", ["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    if not (folder / "serving.crt").exists():
        names = ",".join(f"{'IP' if name[0].isdigit() else 'DNS'}:{name}" for name in server_names)
        _signed(folder, "serving", "/CN=kube-apiserver", f"extendedKeyUsage=serverAuth\nsubjectAltName={names}\n")
    for name, subject in clients.items():
        if not (folder / f"{name}.crt").exists():
            _signed(folder, name, subject, "extendedKeyUsage=clientAuth\n")
    if not (folder / "service-account.pub").exists():
        key = folder / "service-account.key"
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key])
        run(["openssl", "ec", "-in", key, "-pubout", "-out", folder / "service-account.pub"])


def _new(stem: Path, subject: str, extra: list[str]) -> None:
    files = ["-keyout", f"{stem}.key", "-out", f"{stem}.crt"]
    run(["openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", subject, *files, *extra])


def _signed(folder: Path, name: str, subject: str, extensions: str) -> None:
    request, draft = folder / f"{name}.csr", folder / f"{name}.draft"
    run(["openssl", "req", *_KEY, "-subj", subject, "-keyout", folder / f"{name}.key", "-out", request])
    authority = ["-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key", "-set_serial", str(_serial(folder, name))]
    sign = ["openssl", "x509", "-req", "-in", str(request), *authority, "-days", _DAYS, "-extfile", "/dev/stdin"]
    run([*sign, "-out", draft], stdin=f"basicConstraints=CA:FALSE\n{extensions}")
    draft.rename(folder / f"{name}.crt")  # a certificate that is there is complete
    request.unlink()


def _serial(folder: Path, name: str) -> int:
    return int.from_bytes(f"{name}".encode()[:16], "big")
