"""What the modules share that have an operator on a control plane of their own (the fixture `plane`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from devcluster.controlplane import ControlPlane
from tests.integration.engine import administrator
from tests.integration.kubelet import Admin, Kubelet


@pytest.fixture
async def admin(plane: ControlPlane) -> AsyncIterator[Admin]:
    async with administrator(plane) as made:
        yield made


@pytest.fixture
async def kubelet(admin: Admin) -> AsyncIterator[Kubelet]:
    async with Kubelet(admin) as running:
        yield running
