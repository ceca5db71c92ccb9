"""Dashboard, alerts and PromQL guards on a real Prometheus that scrapes the real operator: queries have data, alerts fire and end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator import conditions as c
from finetune_operator.kinds import FINETUNE

from devcluster import prometheus
from devcluster.controlplane import ControlPlane
from devcluster.shell import CommandError
from tests.integration.engine import NAMESPACE, SECONDS, Operator, Space, install, ready, until
from tests.integration.kubelet import Admin, Object
from tests.integration.told import Told, as_pod
from tests.unit.operator.world import Outcome
from tests.watching import ALERTS, Watching, dashboard, rules

COUNTED = 'rate(envoy_cluster_upstream_rq_xx{namespace="${namespace}", name="${finetune}", arm="${arm}"'
SHARE_FAILED = f'sum({COUNTED}, envoy_response_code_class="5"}}[${{window}}])) / sum({COUNTED}}}[${{window}}]))'
QUERY = {"name": "failed", "query": SHARE_FAILED, "max": "0.3"}
GUARDS = {"maxErrorRatePercent": 100, "queries": [QUERY]}  # no other guard minds failures

NO_STATUS = (
    {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "no-status"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": ["finetune.dev"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["finetunes/status"]}
                ]
            },
            "validations": [{"expression": "false", "message": "none is taken"}],
        },
    },
    {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "no-status"},
        "spec": {"policyName": "no-status", "validationActions": ["Deny"]},
    },
)  # fmt: skip


def rollout(hold: str = "1s", wanted: int = 50) -> dict[str, Any]:
    guards = {**GUARDS, "minRequests": wanted}
    return {"steps": [{"weight": 10, "hold": hold}, {"weight": 100}], "bake": "1s", "progressDeadline": "2m", "guards": guards}


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as started:
        install(started)
        yield started


@pytest.fixture
async def kubelet(admin: Admin) -> AsyncIterator[Told]:
    async with Told(admin) as running:
        yield running


async def test_a_real_prometheus_sees_guards_and_is_seen(admin: Admin, kubelet: Told, plane: ControlPlane, tmp_path: Path) -> None:
    def pods() -> list[Object] | None:
        found = plane.pods()
        return None if found is None else [as_pod(operator), *found]

    (home := tmp_path / "prometheus").mkdir()
    watching = Watching(home, pods)
    known = {"FINETUNE_PROMETHEUS_URL": watching.url, "FINETUNE_PROMETHEUS_SECONDS": "1"}
    operator = Operator(plane, tmp_path, "watched", settings=known)
    with watching:
        async with operator:
            await until(watching.ready, what="Prometheus")
            await operator.leading()
            await until(lambda: watching.query("finetune_leading == 1"), what="a scrape of the operator")
            good, bad = await Space.new(admin, "good"), await Space.new(admin, "bad")
            training, failing = await Space.new(admin, "training"), await Space.new(admin, "failing")
            held = await Space.new(admin, "held")
            kubelet.progress = {"step": 3, "totalSteps": 9, "percent": 33, "loss": 0.5, "validationLoss": 0.6, "tokensPerSecond": 7.0}
            kubelet.progress |= {"supervisedTokensPerSecond": 5.0, "state": "training"}
            kubelet.outcomes["training"]["train"] = [Outcome(never=True)]
            kubelet.outcomes["failing"]["train"] = [Outcome(code=1)]
            canaries: set[str] = set()
            kubelet.fails = lambda namespace, arm: namespace == "bad" and arm in canaries
            await asyncio.gather(
                good.make(serving={"replicas": 1}, rollout=rollout()),
                bad.make(serving={"replicas": 1}, rollout=rollout(wanted=10_000_000)),
                held.make(serving={"replicas": 1}, rollout=rollout(wanted=10_000_000)),
                training.make(compute={"nodes": 1}),
                failing.make(compute={"nodes": 1}),
            )
            begun = await bad.wait(lambda s: s.get("rollout", {}).get("state") in ("Deploying", "Connecting"))
            canaries.add(begun["rollout"]["arm"])

            await asyncio.gather(
                _passes(good, watching), _is_taken_back(bad, watching), _stands_still(training, watching), _fails(failing, watching),
            )  # fmt: skip
            await _every_query_has_data(watching)
            await _held_while_prometheus_is_away(held, watching)
            await asyncio.gather(bad.edit(suspend=True), training.edit(suspend=True), admin.delete(FINETUNE, "failing", "bot"))
            for alert in ("FineTuneRolledBack", "FineTuneTrainingStalled", "FineTuneFailed", "FineTuneTrainingFailsAgain"):
                await watching.resolved(alert)
            await _refused_what_it_would_say(good, plane, watching)

            await operator.signal(signal.SIGKILL)
            await watching.told("FineTuneOperatorDown")
            operator.start()
            await watching.resolved("FineTuneOperatorDown")


async def _passes(space: Space, watching: Watching) -> None:
    status = await space.phase("Live")
    assert ready(status)["status"] == "True"
    live = f'finetune_arm{{namespace="good", name="bot", role="stable", arm="{status["liveArm"]}", revision="{status["liveRevision"]}"}}'
    await until(lambda: watching.query(live), what="its new arm's role")


async def _is_taken_back(space: Space, watching: Watching) -> None:
    """Its guards wait for requests until the alert has told of the errors; with fewer wanted the rollout is rolled back."""
    await watching.told("FineTuneErrors", seconds=SECONDS, namespace="bad", role="canary")
    await space.edit(rollout=rollout(hold="5m"))
    status = await space.phase("Rejected")
    assert (status["reason"], status["rollout"]["weight"], status["liveRevision"]) == (c.GUARD_FAILED, 0, "base")
    message = ready(status)["message"]
    assert "guard query failed failed at 10 %: query failed: canary 1, stable 0, max 0.3" in message
    await watching.told("FineTuneRolledBack", namespace="bad", reason=c.GUARD_FAILED)
    await watching.resolved("FineTuneErrors")


async def _fails(space: Space, watching: Watching) -> None:
    await space.phase("Failed")
    await watching.told("FineTuneFailed", namespace="failing")
    await watching.told("FineTuneTrainingFailsAgain", namespace="failing")


async def _stands_still(space: Space, watching: Watching) -> None:
    await space.phase("Training")
    await watching.told("FineTuneTrainingStalled", namespace="training")


async def _refused_what_it_would_say(space: Space, plane: ControlPlane, watching: Watching) -> None:
    """The API server takes no status of a FineTune for a while; afterwards the operator says what it would have said."""
    plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(NO_STATUS))
    ask = ("-n", space.name, "patch", "finetune", "bot", "--subresource=status", "--type=merge", "--dry-run=server", "-p")

    def refuses() -> bool:
        try:
            plane.kubectl(*ask, '{"status": {"reason": "Asked"}}')
        except CommandError as error:
            return "none is taken" in str(error)
        return False

    await until(refuses, what="the policy")
    await space.edit(serving={"replicas": 2})
    await watching.told("FineTuneOperatorFailing", namespace=NAMESPACE)
    plane.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "no-status")
    found = await space.admin.get(FINETUNE, space.name, "bot")
    assert found is not None
    generation = found["metadata"]["generation"]
    assert found["status"]["observedGeneration"] < generation
    await space.wait(lambda s: s["observedGeneration"] == generation)
    await watching.resolved("FineTuneOperatorFailing")


async def _every_query_has_data(watching: Watching) -> None:
    async def lacks_none() -> bool:
        return not await watching.lacking(dashboard())

    with contextlib.suppress(AssertionError):
        await until(lacks_none, seconds=20)
    assert await watching.lacking(dashboard()) == []


async def _held_while_prometheus_is_away(held: Space, watching: Watching) -> None:
    """It waits for requests that never come; with fewer wanted, Prometheus alone keeps it where it is."""
    await held.wait(lambda s: s.get("rollout", {}).get("state") == "Holding")
    watching.stop()
    await asyncio.sleep(2)  # what it last answered is good for a second
    await held.edit(rollout=rollout())
    status = await held.phase("Paused")
    assert (status["reason"], status["rollout"]["weight"], status["rollout"]["state"]) == (c.GUARD_UNDECIDED, 10, "Holding")
    assert "query failed: Prometheus cannot be asked: ClientConnectorError" in ready(status)["message"]
    await asyncio.sleep(3)
    later = await held.status()
    assert (later["phase"], later["rollout"]["weight"]) == ("Paused", 10), "neither promoted nor taken back"
    watching.start()
    await held.phase("Live")


@dataclass(frozen=True)
class Case:
    """Series, a value a minute, and when the alert fires and does no longer, in minutes; `labels` are its own beside the severity."""

    series: dict[str, str]
    quiet: int
    fires: int
    ended: int
    labels: dict[str, str] = field(default_factory=dict)


BOT = 'namespace="ml", name="bot"'
OF = {"namespace": "ml", "name": "bot"}
CASES: dict[str, Case] = {
    "FineTuneOperatorDown": Case({"finetune_leading": "1x5 _x20 1x20"}, 14, 20, 30),
    "FineTuneNoLeader": Case({'finetune_leading{namespace="ops"}': "1x5 0x9 1x9"}, 10, 12, 17, {"namespace": "ops"}),
    "FineTuneOperatorFailing": Case(
        {
            'finetune_reconciles_total{namespace="ops", outcome="error"}': "0+9x40 360x40",
            'finetune_reconciles_total{namespace="ops", outcome="ok"}': "0+1x40 40+9x40",
        },
        14, 30, 55, {"namespace": "ops"},
    ),
    "FineTuneFailed": Case({f'finetune_phase{{{BOT}, phase="Failed"}}': "1x9 _x9"}, 0, 2, 16, OF),
    "FineTuneBlocked": Case(
        {f'finetune_not_ready{{{BOT}, reason="SecretMissing"}}': "1x30 _x9", f'finetune_phase{{{BOT}, phase="Pending"}}': "1x50"},
        14, 16, 37, {**OF, "reason": "SecretMissing"},
    ),
    "FineTuneTrainingStalled": Case({f'finetune_trainer_step{{{BOT}, stage="train"}}': "0+1x10 10x40 10+1x10"}, 35, 45, 55, OF),
    "FineTuneTrainingFailsAgain": Case(
        {
            f'finetune_training_attempts{{{BOT}, outcome="error"}}': "_x10 1x10 2x500",
            f'finetune_training_attempts{{{BOT}, outcome="outOfMemory"}}': "_x30 1x500",
        },
        29, 40, 500, OF,
    ),
    "FineTuneRolloutHeld": Case(
        {f'finetune_not_ready{{{BOT}, reason="GuardUndecided"}}': "1x40 _x9", f'finetune_phase{{{BOT}, phase="Paused"}}': "1x40 _x9"},
        29, 31, 47, {**OF, "reason": "GuardUndecided"},
    ),
    "FineTuneRolledBack": Case(
        {
            f'finetune_not_ready{{{BOT}, reason="GateFailed"}}': "1x3 _x30",
            f'finetune_not_ready{{{BOT}, reason="NeverReady"}}': "_x9 1x9 _x9",
            f'finetune_phase{{{BOT}, phase="Rejected"}}': "1x20 _x9",
        },
        2, 12, 26, {**OF, "reason": "NeverReady"},
    ),
    "FineTuneUsersNotServed": Case(
        {f"finetune_available{{{BOT}}}": "1x3 0x9 1x9"},
        2, 6, 19, OF,
    ),
    "FineTuneErrors": Case(
        {
            f'finetune_arm{{{BOT}, role="canary", arm="b", revision="r2"}}': "1x60",
            f'finetune_arm{{{BOT}, role="stable", arm="a", revision="r1"}}': "1x60",
            **{
                f'envoy_cluster_upstream_rq_xx{{{BOT}, arm="{arm}", envoy_response_code_class="{code}"}}': counts
                for arm, code, counts in (("a", 2, "0+600x60"), ("a", 5, "0+3x60"), ("b", 2, "0+60x60"), ("b", 5, "0x10 0+6x20 120x40"))
            },
        },
        9, 20, 45, {**OF, "arm": "b", "role": "canary", "revision": "r2"},
    ),
}  # fmt: skip


def test_each_alert_has_a_case() -> None:
    assert set(CASES) == {rule["alert"] for rule in rules()}


def test_each_alert_fires_in_its_time_and_is_resolved(tmp_path: Path) -> None:
    """promtool runs the rules as they are, less the words for people, which it would compare."""
    bare = [{key: value for key, value in rule.items() if key != "annotations"} for rule in rules()]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": bare}]}))
    document = {"rule_files": ["alerts.yaml"], "tests": [_as_promtool_says(CASES[rule["alert"]], rule) for rule in rules()]}
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(document))
    done = subprocess.run([prometheus.unpacked("promtool"), "test", "rules", tmp_path / "cases.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _as_promtool_says(case: Case, rule: dict[str, Any]) -> dict[str, Any]:
    fired = [{"exp_labels": {**case.labels, **rule["labels"]}}]
    looks = [(case.quiet, []), (case.fires, fired), (case.ended, [])]
    return {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": rule["alert"], "exp_alerts": found} for minute, found in looks],
    }


def test_promtool_finds_nothing_to_mend() -> None:
    done = subprocess.run([prometheus.unpacked("promtool"), "check", "rules", "--lint-fatal", ALERTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
