"""The files for Prometheus and Grafana fit the metrics that a server has."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from varangian.protos.refusals import REFUSALS
from varangian.server.observability.metric_table import METRICS

NAME = re.compile(r"\b(varangian_\w+)")
SUFFIX = re.compile(r"_(bucket|sum|count)$")


@pytest.fixture(scope="module")
def folder(root):
    return root / "examples/observe"


@pytest.fixture(scope="module")
def dashboard(folder):
    return json.loads((folder / "grafana/dashboards/varangian.json").read_text())


@pytest.fixture(scope="module")
def rules(folder):
    (group,) = yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    return group["rules"]


def queries(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def unknown(expressions):
    found = {name for expression in expressions for name in NAME.findall(expression)}
    return {
        name
        for name in found
        if name not in METRICS
        and METRICS.get(SUFFIX.sub("", name), METRICS["varangian_round"]).kind != "histogram"
    }


def test_every_metric_of_the_dashboard_is_one_of_the_server(dashboard):
    variables = [variable["query"]["query"] for variable in dashboard["templating"]["list"]]
    assert len(queries(dashboard)) > 30
    assert unknown([*queries(dashboard), *variables]) == set()
    assert unknown(["varangian_nothing", "varangian_round_bucket"]) == {
        "varangian_nothing",
        "varangian_round_bucket",
    }


def test_every_query_of_the_dashboard_is_of_the_chosen_server(dashboard):
    series = re.compile(r"\b(?:varangian|process)_\w+(?!\w)(\{[^}]*\})?")
    for query in queries(dashboard):
        chosen = {match[1] for match in series.finditer(query)}
        assert chosen == {'{job=~"$job", instance=~"$instance"}'}, query


def test_panels_do_not_overlap_and_have_names_of_their_own(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_every_metric_and_code_of_the_alerts_is_one_of_the_server(rules):
    assert unknown(rule["expr"] for rule in rules) == set()
    codes = re.findall(r'code=~"([^"]+)"', " ".join(rule["expr"] for rule in rules))
    assert {code for found in codes for code in found.split("|")} <= {*REFUSALS}
    assert len({rule["alert"] for rule in rules}) == len(rules)


def test_every_alert_has_a_test(rules, folder):
    tests = (folder / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in rules if rule["alert"] not in tests] == []


def test_the_files_are_where_the_provisioning_looks(folder):
    provisioning = folder / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    panels = json.loads((folder / "grafana/dashboards/varangian.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels if "datasource" in panel} == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards/varangian.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert yaml.safe_load((folder / "prometheus.yml").read_text())["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids="-".join,
)
def test_promtool_finds_nothing(folder, command):
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run([promtool, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
