"""The CRDs of the Gateway API (standard channel), from its Go module."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests import gomodule

MODULE: Final = "sigs.k8s.io/gateway-api@v1.5.1"
SUM: Final = "h1:RqVRIlkhLhUO8wOHKTLnTJA6o/1un4po4/6M1nRzdd0="
GO: Final = (1, 24)


def crds() -> Path:
    """The folder of their manifests."""
    return gomodule.folder(MODULE, SUM, GO) / "config" / "crd" / "standard"
