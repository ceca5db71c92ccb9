"""The CRDs of the Gateway API (standard channel), from its Go module: kept in Go's own cache of modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from devcluster import nodebinary
from devcluster.shell import DevclusterError, run

MODULE: Final = "sigs.k8s.io/gateway-api@v1.5.1"
SUM: Final = "h1:RqVRIlkhLhUO8wOHKTLnTJA6o/1un4po4/6M1nRzdd0="
GO: Final = (1, 24)


def crds() -> Path:
    """The folder of their manifests; the module comes from the Go proxy once."""
    environment = {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    told = json.loads(run([nodebinary.find_go(GO), "mod", "download", "-json", MODULE], env=environment))
    if told["Sum"] != SUM:
        raise DevclusterError(f"{MODULE} has the checksum {told['Sum']}, and not {SUM}")
    return Path(told["Dir"]) / "config" / "crd" / "standard"
