"""The provisioned Grafana dashboard as data: its panels, its PromQL expressions, Grafana's variables filled in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "glass.json"

_VARIABLE = re.compile(r"\$\{?\w+")


def load() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that shows something, those inside collapsed rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", ())


def expressions(dashboard: dict[str, Any]) -> dict[str, str]:
    """PromQL by "panel title / legend"."""
    return {
        f"{panel['title']} / {target['legendFormat']}": target["expr"]
        for panel in panels(dashboard)
        for target in panel["targets"]
    }


def fill(expression: str, values: dict[str, str]) -> str:
    """`expression` with Grafana's variables replaced. Raises ValueError for a variable that has no value."""
    for name, value in values.items():
        expression = expression.replace(f"${name}", value).replace(f"${{{name}}}", value)
    unknown = _VARIABLE.search(expression)
    if unknown is not None:
        raise ValueError(f"no value for {unknown.group()} in {expression!r}")
    return expression
