"""The dashboard file by itself: complete, consistent with the provisioned data source, nothing drawn over another."""

from itertools import combinations
from typing import Any

import pytest
import yaml

from tests.stack import dashboard as grafana

REQUIRED_METRICS = (
    "glass_time_to_first_token_seconds_bucket",
    "glass_inter_token_latency_seconds_bucket",
    "glass_e2e_request_latency_seconds_bucket",
    "glass_prompt_tokens_total",
    "glass_generation_tokens_total",
    "glass_num_requests_running",
    "glass_num_requests_waiting",
    "glass_kv_cache_usage_ratio",
    "glass_flops_saved_total",
    "glass_flops_dense_total",
    "glass_effective_sparsity_sum",
    "glass_expected_kl_bucket",
    "glass_auto_sparsity_bucket",
    "glass_refined_requests_total",
    "glass_selection_seconds_bucket",
    "glass_http_requests_total",
    "glass_admission_rejections_total",
    "glass_num_preemptions_total",
    "glass_prefix_cache_hits_total",
    "glass_prefix_cache_queries_total",
    "glass_view_bytes_used",
)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return grafana.load()


def test_every_expression_is_found_once(dashboard: dict[str, Any]) -> None:
    num_targets = sum(len(panel["targets"]) for panel in grafana.panels(dashboard))
    assert num_targets == len(grafana.expressions(dashboard)) >= 40


@pytest.mark.parametrize("metric", REQUIRED_METRICS)
def test_shows(dashboard: dict[str, Any], metric: str) -> None:
    assert any(metric in expression for expression in grafana.expressions(dashboard).values())


@pytest.mark.parametrize("what", ["flops", "ffn_flops", "ffn_bytes"])
def test_executed_planned_and_dense_are_side_by_side(dashboard: dict[str, Any], what: str) -> None:
    counts = {f"glass_{what}_{count}_total" for count in ("dense", "computed", "planned")}
    shown = [" ".join(target["expr"] for target in panel["targets"]) for panel in grafana.panels(dashboard)]
    assert any(all(metric in expressions for metric in counts) for expressions in shown)


@pytest.mark.parametrize(
    "metric",
    ["glass_time_to_first_token_seconds", "glass_inter_token_latency_seconds", "glass_e2e_request_latency_seconds"],
)
def test_latencies_have_three_percentiles(dashboard: dict[str, Any], metric: str) -> None:
    quantiles = {
        expression.split("(")[1].split(",")[0]
        for expression in grafana.expressions(dashboard).values()
        if expression.startswith("histogram_quantile") and metric in expression
    }
    assert quantiles == {"0.5", "0.9", "0.99"}


def test_panels_have_unique_ids_and_descriptions(dashboard: dict[str, Any]) -> None:
    shown = list(grafana.panels(dashboard))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["description"] and panel["title"] for panel in shown)


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    boxes = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        ), f"{one} and {other}"


def test_uses_the_provisioned_data_source(dashboard: dict[str, Any]) -> None:
    provisioning = grafana.DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    provisioned = {source["uid"] for source in sources}
    used = {target["datasource"]["uid"] for panel in grafana.panels(dashboard) for target in panel["targets"]}
    used |= {variable["datasource"]["uid"] for variable in dashboard["templating"]["list"]}
    assert used == provisioned


def test_fill_replaces_variables() -> None:
    values = {"__rate_interval": "10s", "model": "m"}
    assert grafana.fill('rate(x{a=~"$model"}[${__rate_interval}])', values) == 'rate(x{a=~"m"}[10s])'


def test_fill_refuses_an_unknown_variable() -> None:
    with pytest.raises(ValueError, match=r"no value for \$other"):
        grafana.fill('x{a="$other"}', {"model": "m"})
