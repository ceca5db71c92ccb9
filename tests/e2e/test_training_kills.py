"""Ranks that are killed: the training ends as one that was left alone. `make chaos-training` kills thirty times, this three."""

from __future__ import annotations

from tests.chaos.training import twins
from tests.e2e.world import World

KILLS = 3
EPOCHS = 6


async def test_three_kills_cost_a_training_nothing_but_time(world: World) -> None:
    with world.namespace("e2e-training-kills") as space:
        found = await twins(space, "ZeRO2", KILLS, EPOCHS, seed=17)
    print(found.line())
    assert found.kills == KILLS
    assert found.problems == []
