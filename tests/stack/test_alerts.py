"""The Prometheus configuration and the alert rules, checked and unit-tested with the real promtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.stack.dashboard import DEPLOY
from tests.stack.get_prometheus import Prometheus

pytestmark = pytest.mark.stack
RULES = DEPLOY / "prometheus" / "alerts.yml"
RULE_TESTS = Path(__file__).parent / "data" / "alerts_test.yml"


def promtool(prometheus: Prometheus, *arguments: str) -> None:
    done = subprocess.run([str(prometheus.promtool), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_is_valid(prometheus: Prometheus) -> None:
    promtool(prometheus, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_rules_are_valid(prometheus: Prometheus) -> None:
    promtool(prometheus, "check", "rules", "--lint-fatal", str(RULES))


def test_rules_fire_when_they_should_and_only_then(prometheus: Prometheus, tmp_path: Path) -> None:
    for source in (RULES, RULE_TESTS):
        shutil.copy(source, tmp_path)
    promtool(prometheus, "test", "rules", str(tmp_path / RULE_TESTS.name))


def test_every_alert_has_a_rule_test() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    tested = set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text()))
    assert tested == {rule["alert"] for rule in rules}
