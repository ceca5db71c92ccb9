"""What the chart has for Prometheus and Grafana: whole, of metrics that there are, and off unless it is asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Final

import pytest
import yaml
from finetune_operator.metrics import Metrics
from finetune_trainer import progress
from finetune_trainer.serve.metrics import Metrics as ServerMetrics
from prometheus_client import CollectorRegistry

from tests.unit.charts.test_chart import CHART, ROOT, Manifest, one, rendered

FILES: Final = CHART / "files"
PAGE: Final = (ROOT / "docs" / "observability.md").read_text()
DASHBOARD: Final[Manifest] = json.loads((FILES / "dashboard.json").read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES: Final = [rule for group in yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
ON: Final = tuple(
    word for name in ("serviceMonitor", "podMonitor", "rules", "dashboard") for word in ("--set", f"metrics.{name}.enabled=true")
)
# Envoy's, as tests/router reads them from a real one, and vLLM's, as docs/contracts.md has them.
OTHERS: Final = {
    "envoy_cluster_upstream_rq_xx", "envoy_cluster_upstream_cx_protocol_error", "envoy_cluster_upstream_rq_time_bucket",
    "envoy_cluster_membership_healthy", "vllm:time_to_first_token_seconds_bucket", "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:request_success_total",
}  # fmt: skip


def of_registry(registry: CollectorRegistry) -> set[str]:
    """The names of all samples that it has, or would have once something is counted."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes[family.type]}


OPERATORS: Final = of_registry(Metrics().registry)
SERVERS: Final = of_registry(ServerMetrics().registry)
KNOWN: Final = OPERATORS | SERVERS | set(progress._METRICS.values()) | OTHERS


def queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["name"], note["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def test_every_metric_that_is_asked_for_is_one_that_somebody_tells() -> None:
    asked = {name for _, query in queries() for name in re.findall(r"(?:finetune_|envoy_cluster_|vllm:)\w+", query)}
    assert asked - KNOWN == set()
    assert len(asked) > 25


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    for panel in PANELS:
        assert panel["title"]
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert [t["refId"] for t in panel["targets"]] == ["A", "B", "C"][: len(panel["targets"])], panel["title"]
        for target in panel["targets"]:
            assert target["expr"].strip()
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    counted = Counter(panel["title"] for panel in DASHBOARD["panels"])
    assert max(counted.values()) == 1


def test_units_are_those_of_the_metrics() -> None:
    """Seconds, milliseconds and shares are not to be mixed up."""
    for panel in PANELS:
        unit, expression = panel["fieldConfig"]["defaults"]["unit"], panel["targets"][0]["expr"]
        if "histogram_quantile" in expression:
            assert unit == ("ms" if "envoy" in expression else "s"), panel["title"]
        if "_percent" in expression:
            assert unit == "percent", panel["title"]
        if expression.startswith("sum") and "rate(" in expression:
            assert unit in (("percentunit",) if ") / sum" in expression else ("ops", "reqps")), panel["title"]


def test_panels_lie_side_by_side_and_have_numbers_of_their_own() -> None:
    def cells(panel: Manifest) -> set[tuple[int, int]]:
        p = panel["gridPos"]
        assert p["x"] + p["w"] <= 24
        return {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}

    placed = [(panel["title"], cells(panel)) for panel in DASHBOARD["panels"]]
    assert [(a, b) for (a, mine), (b, its) in combinations(placed, 2) if mine & its] == []
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_variables_are_those_that_queries_use() -> None:
    used = {name for _, query in queries() for name in re.findall(r"\$(?!__)\{?(\w+)", query)} | {"datasource"}
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert used - {"1"} == defined, "`$1` is label_replace's"


def test_every_alert_says_what_is_the_case_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert f"`{rule['alert']}`" in PAGE
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_page_lists_what_the_operator_and_the_servers_tell() -> None:
    listed = PAGE.replace("`…_", "`finetune_training_")
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in OPERATORS | SERVERS}
    assert sorted(name for name in names if name not in listed) == []


def test_nothing_needs_anothers_crds_unless_it_is_asked_for() -> None:
    assert [m["kind"] for m in rendered() if m["apiVersion"].startswith("monitoring.coreos.com")] == []
    assert [m["metadata"]["name"] for m in rendered() if m["kind"] == "ConfigMap"] == ["ops-profiles"]
    kinds = Counter(m["kind"] for m in rendered(*ON) if m["apiVersion"].startswith("monitoring.coreos.com"))
    assert kinds == {"ServiceMonitor": 1, "PodMonitor": 1, "PrometheusRule": 1}


@pytest.mark.parametrize(
    ("kind", "name", "value", "key"),
    [
        ("ServiceMonitor", "ops", "serviceMonitor", "release"),
        ("PodMonitor", "ops-finetunes", "podMonitor", "release"),
        ("PrometheusRule", "ops", "rules", "release"),
        ("ConfigMap", "ops-dashboard", "dashboard", "folder"),
    ],
)
def test_what_picks_it_up_finds_its_label(kind: str, name: str, value: str, key: str) -> None:
    made = one(rendered(*ON, "--set", f"metrics.{value}.labels.{key}=prom"), kind, name, "system")
    assert made["metadata"]["labels"][key] == "prom"
    assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "finetune-operator"


def test_rules_and_dashboard_are_the_files_to_the_letter() -> None:
    """Helm must take none of the braces in them for its own."""
    rule = one(rendered(*ON), "PrometheusRule", "ops", "system")
    assert rule["spec"] == yaml.safe_load((FILES / "alerts.yaml").read_text())
    board = one(rendered(*ON), "ConfigMap", "ops-dashboard", "system")
    assert json.loads(board["data"]["finetunes.json"]) == DASHBOARD
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_series_of_a_finetune_keep_its_namespace() -> None:
    (endpoint,) = one(rendered(*ON), "ServiceMonitor", "ops", "system")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True


@pytest.mark.parametrize(
    ("arguments", "selector"), [((), {"any": True}), (("--set", "namespaces={ml,nlp}"), {"matchNames": ["ml", "nlp"]})]
)
def test_pods_are_looked_for_where_finetunes_are_looked_after(arguments: tuple[str, ...], selector: Manifest) -> None:
    assert one(rendered(*ON, *arguments), "PodMonitor", "ops-finetunes", "system")["spec"]["namespaceSelector"] == selector


def test_the_pod_monitor_is_the_documented_configuration() -> None:
    """The latter is what the integration test's Prometheus scrapes by. Namespace, pod and port are the Prometheus Operator's to add."""
    endpoints = one(rendered(*ON), "PodMonitor", "ops-finetunes", "system")["spec"]["podMetricsEndpoints"]
    (block,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", PAGE, re.DOTALL)
    jobs = [job for job in yaml.safe_load(block)["scrape_configs"] if job["job_name"] != "finetune-operator"]
    assert [_plain(endpoint) for endpoint in endpoints] == [_own(job) for job in jobs]


def _plain(endpoint: Manifest) -> Manifest:
    """An endpoint of a PodMonitor, in Prometheus' own words."""
    return {
        "port": endpoint["port"], "path": endpoint["path"], "params": endpoint.get("params", {}),
        "relabel": _snake(endpoint["relabelings"]), "metric_relabel": _snake(endpoint.get("metricRelabelings", [])),
    }  # fmt: skip


def _own(job: Manifest) -> Manifest:
    port, running, *relabel = job["relabel_configs"]
    assert running["source_labels"] == ["__meta_kubernetes_pod_phase"]
    assert [r["target_label"] for r in relabel[:2]] == ["namespace", "pod"]
    return {
        "port": port["regex"], "path": job.get("metrics_path", "/metrics"), "params": job.get("params", {}),
        "relabel": relabel[2:], "metric_relabel": job.get("metric_relabel_configs", []),
    }  # fmt: skip


def _snake(configs: list[Manifest]) -> list[Manifest]:
    return [{re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in config.items()} for config in configs]
