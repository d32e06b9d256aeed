"""A real Prometheus reads the metrics of a real run, fires an alert, and answers the dashboard."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from tests.extent import patience
from tests.ports import free_port

# tests/packaging/test_observe.py checks the files, and tests/server/observability/test_metrics.py the text.
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = (
    "workers=6",
    "f=1",
    "aggregator=multi_krum",
    "byzantine.count=1",
    "byzantine.attack=sign_flip",
    "rounds=100000",
    "evaluate.every=5",
    "ema.decay=0.9",
    "ema.reference_batch=1",
    "server.tls=true",
    "server.checkpoint.every=20",
)


@pytest.fixture
def started():
    """Starts programs, and ends them after the test."""
    processes = []

    def start(*command, **options):
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield start
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(patience(60))


class Prometheus:
    def __init__(self, port, processes):
        self.processes = processes
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path, **arguments):
        with urlopen(f"{self.url}/{path}?{urlencode(arguments)}", timeout=patience(10)) as answer:
            return json.load(answer)["data"]

    def query(self, expression, label=""):
        """Values by a label."""
        found = self.get("query", query=expression)["result"]
        return {one["metric"].get(label, ""): float(one["value"][1]) for one in found}

    def until(self, condition, what):
        """What the condition returns, once that is something."""
        last, end = None, time.monotonic() + patience(120)
        while time.monotonic() < end:
            assert [process.poll() for process in self.processes] == [None, None], what
            try:
                if found := condition():
                    return found
            except OSError as error:
                last = error
            time.sleep(0.5)
        raise AssertionError(f"{what}: {last}")


def test_prometheus_sees_a_run_and_fires_for_a_worker_without_weight(tmp_path, started):
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    metrics, port = free_port(), free_port()
    folder = ROOT / "examples/observe"
    configuration = yaml.safe_load((folder / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{metrics}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(folder / "alerts.yml", tmp_path)
    command = [sys.executable, "-m", "varangian", "run", *SETTINGS, f"server.metrics_port={metrics}"]
    run = started(
        *command,
        f"output={tmp_path / 'runs'}",
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    scraper = started(
        program,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    prometheus = Prometheus(port, (run, scraper))

    def firing():
        return [
            alert["labels"]["worker"]
            for alert in prometheus.get("alerts")["alerts"]
            if alert["labels"]["alertname"] == "VarangianWorkerWithoutWeight" and alert["state"] == "firing"
        ]

    assert prometheus.until(firing, "the alert does not fire") == ["w05"]

    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["labels"]["job"]) == ("up", "varangian")
    weights = prometheus.query("varangian_worker_weight", "worker")
    assert weights.keys() == {f"w0{i}" for i in range(6)}
    assert weights["w05"] == 0.0
    assert sum(weights.values()) == pytest.approx(1.0)
    phases = prometheus.query("sum by (phase) (varangian_round_seconds_count)", "phase")
    assert phases.keys() == {"wait", "aggregate", "gram", "rule", "step", "evaluate"}
    assert prometheus.query('varangian_pushes_total{outcome="counted"}')[""] > 100
    assert prometheus.query("varangian_accuracy")[""] > 0.1

    dashboard = json.loads((folder / "grafana/dashboards/varangian.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]

    def silent():
        chosen = ((r"\$job|\$instance", ".*"), (r"\$__rate_interval", "15s"))
        found = []
        for expression in asked:
            for variable, value in chosen:
                expression = re.sub(variable, value, expression)
            if not prometheus.get("query", query=expression)["result"]:
                found.append(expression)
        return found

    # No call is refused in this run.
    prometheus.until(lambda: all("refusals" in one for one in silent()), f"no answer: {silent()}")
