"""A real Prometheus on a free loopback port, configured like the deployed one, scraping every second."""

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

from tests.e2e.live_server import free_port
from tests.stack.dashboard import DEPLOY
from tests.stack.get_prometheus import Prometheus

DEADLINE_SECONDS = 30.0
DEPLOYED = DEPLOY / "prometheus" / "prometheus.yml"


def derive_configuration(target: str, own_address: str) -> dict[str, Any]:
    """The deployed configuration with its targets replaced, scraping every second."""
    configuration: dict[str, Any] = yaml.safe_load(DEPLOYED.read_text())
    configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOYED.parent / name) for name in configuration["rule_files"]]
    addresses = {"glass": target, "prometheus": own_address}
    for job in configuration["scrape_configs"]:
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    return configuration


class LivePrometheus:
    """Scrapes `target` (host:port) every second while the context is open. Nothing outlives it but `folder`."""

    def __init__(self, executables: Prometheus, target: str, folder: Path) -> None:
        address = f"127.0.0.1:{free_port()}"
        self._client = httpx.Client(base_url=f"http://{address}")
        self._log_path = folder / "prometheus.log"
        configuration = folder / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(derive_configuration(target, address)))
        self._command = [
            str(executables.server),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
        ]

    def __enter__(self) -> "LivePrometheus":
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Instant vector of `expression`; an AssertionError with Prometheus's message when it does not parse."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Every loaded alert rule with its health."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait_for_scrape(self) -> None:
        """Return once a scrape that began after this call is stored."""
        now = time.time()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            # of a plain selector only, `timestamp` is the scrape's; of an expression it is the query's
            samples = self.query('timestamp(up{job="glass"}) and up{job="glass"} == 1')
            if samples and float(samples[0]["value"][1]) > now:
                return
            time.sleep(0.2)
        raise TimeoutError(f"no successful scrape in {DEADLINE_SECONDS} s:\n{self._log_path.read_text()}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"prometheus exited with {self._process.returncode}:\n{self._log_path.read_text()}")
            try:
                if self._client.get("/-/ready").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise TimeoutError(f"prometheus was not ready after {DEADLINE_SECONDS} s:\n{self._log_path.read_text()}")

    def _stop(self) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
