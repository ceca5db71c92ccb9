"""One writer at a time, whoever was frozen, whatever the API server answers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from finetune_operator import errors
from finetune_operator.cluster import Cluster
from finetune_operator.leadership import LEASE_SECONDS, MARGIN_SECONDS, RENEW_SECONDS, Elector

from tests.unit.operator.world import HandClock


class Leases:
    """The API server's one Lease; `down` makes every call fail."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version, self.down = 0, False
        self.asked: list[str] = []

    async def get(self, *_: Any) -> dict[str, Any] | None:
        self._ask("get")
        return self.lease

    async def create(self, _: Any, lease: dict[str, Any]) -> dict[str, Any]:
        self._ask("create")
        if self.lease is not None:
            raise errors.AlreadyExists("exists")
        return self._store(lease)

    async def replace(self, _: Any, lease: dict[str, Any]) -> dict[str, Any]:
        self._ask("replace")
        if self.lease is None:
            raise errors.NotFound("gone")
        if lease["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise errors.Conflict("changed")
        return self._store(lease)

    def _ask(self, verb: str) -> None:
        if self.down:
            raise errors.Unavailable("down")
        self.asked.append(verb)

    def _store(self, lease: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {**lease, "metadata": {**lease["metadata"], "resourceVersion": str(self.version)}}
        return self.lease


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """Time passes by sleeping."""
    made = HandClock()

    async def sleep(seconds: float) -> None:
        made.seconds += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return made


def elector(leases: Leases, clock: HandClock, name: str) -> Elector:
    return Elector(cast(Cluster, leases), clock, "ns", "lease", name)


async def test_the_first_leads_and_the_second_takes_over_only_after_a_whole_lease_without_a_renewal(clock: HandClock) -> None:
    leases = Leases()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await one.acquire()
    clock.seconds += LEASE_SECONDS - MARGIN_SECONDS - 0.1
    one.may_write()
    seen = clock.seconds
    await two.acquire()
    assert clock.seconds - seen >= LEASE_SECONDS, "counted from when it saw the Lease first: it does not trust other clocks"
    two.may_write()
    with pytest.raises(errors.LeadershipLost, match="one does not hold Lease"):
        one.may_write()
    assert leases.lease is not None
    assert (leases.lease["spec"]["holderIdentity"], leases.lease["spec"]["leaseTransitions"]) == ("two", 1)


async def test_a_leader_that_was_frozen_past_its_deadline_writes_nothing_even_if_nobody_took_over(clock: HandClock) -> None:
    leases = Leases()
    one = elector(leases, clock, "one")
    await one.acquire()
    clock.seconds += LEASE_SECONDS
    before = leases.version
    with pytest.raises(errors.LeadershipLost):
        await one.keep()
    assert leases.version == before, "it does not renew either: the work that it had begun is of another time"


async def test_a_renewing_leader_is_never_taken_over(clock: HandClock) -> None:
    leases = Leases()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await one.acquire()
    for _ in range(10):
        clock.seconds += RENEW_SECONDS
        assert await one._try()
        assert not await two._try()
    one.may_write()


async def test_a_renewal_reads_nothing_unless_somebody_else_wrote(clock: HandClock) -> None:
    leases = Leases()
    a = elector(leases, clock, "a")
    assert [await a._try() for _ in range(3)] == [True] * 3
    assert leases.asked == ["get", "create", "replace", "replace"]

    assert leases.lease is not None
    leases._store(leases.lease)  # as by an annotation
    assert [await a._try() for _ in range(3)] == [False, True, True]
    leases.lease = None
    assert [await a._try() for _ in range(2)] == [False, True]
    assert leases.asked[4:] == ["replace", "get", "replace", "replace", "replace", "get", "create"]


async def test_an_api_server_that_is_down_ends_the_leadership_at_its_deadline(clock: HandClock) -> None:
    leases = Leases()
    one = elector(leases, clock, "one")
    await one.acquire()
    began, leases.down = clock.seconds, True
    with pytest.raises(errors.LeadershipLost):
        await one.keep()
    assert LEASE_SECONDS - MARGIN_SECONDS <= clock.seconds - began <= LEASE_SECONDS


async def test_a_renewal_that_failed_is_tried_again_soon(clock: HandClock) -> None:
    """An API server that refuses three of four requests for a minute costs nobody the Lease."""

    class Flaky(Leases):
        busy, count = False, 0

        def _ask(self, verb: str) -> None:
            self.count += self.busy
            if self.count % 4:
                raise errors.Unavailable("busy")
            if clock.seconds > 60:
                raise Enough

    class Enough(Exception):
        """It went on for long enough."""

    leases = Flaky()
    one = elector(leases, clock, "one")
    await one.acquire()
    leases.busy = True
    with pytest.raises(Enough):
        await one.keep()


async def test_a_released_lease_is_taken_at_once(clock: HandClock) -> None:
    leases = Leases()
    one, two = elector(leases, clock, "one"), elector(leases, clock, "two")
    await one.acquire()
    await one.release()
    assert not one.leading
    assert await two._try()


async def test_who_meets_another_write_does_not_lead(clock: HandClock) -> None:
    class Racing(Leases):
        async def get(self, *_: Any) -> dict[str, Any] | None:
            found, self.version = self.lease, self.version + 1
            if found:
                self.lease = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}
            return found

    leases = Racing()
    await leases.create(None, {"metadata": {}, "spec": {"holderIdentity": ""}})
    one = elector(leases, clock, "one")
    assert not await one._try()
    assert not one.leading
