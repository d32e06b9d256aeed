"""The page: what it shows, and that nothing in it comes from elsewhere or runs by itself."""

import csv
import html
import html.parser
import io
import json
import re
import shlex
import urllib.parse

import pytest
from tests.experiments.report.conftest import ATTACKS, HOSTILE, REASON, RULES, learning, settings

from varangian.config import load
from varangian.experiments.report.page import page
from varangian.experiments.report.rendering import Table
from varangian.experiments.report.reproduce import command_of
from varangian.experiments.results.read import read_runs

pytestmark = pytest.mark.usefixtures("small_library")


class Elements(html.parser.HTMLParser):
    """Tags with their attributes, ids, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def study_page(compared):
    return page(read_runs([compared[0]]))


def test_a_study_has_all_sections_in_order(study_page):
    found = [one["id"] for one in Elements(study_page).of("section")]
    assert found == ["worst-cases", "curves", "length", "trust", "runs", "settings"]


def test_the_table_of_worst_cases(study_page, compared):
    text = Elements(study_page).text
    for rule in RULES:
        means = {
            attack: sum(compared[1][rule, attack, seed][-1] for seed in (1, 2, 10)) / 3
            for attack in ATTACKS
        }
        worst = min(("alie", "sign_flip"), key=means.get)
        assert f"{100 * means[worst]:.1f} {worst}" in text
        assert f"{100 * means['none']:.1f}" in text


def test_a_run_alone_has_what_makes_sense_for_one(hostile):
    found = [one["id"] for one in Elements(page(read_runs([hostile]))).of("section")]
    assert found == ["curves", "trust", "runs", "settings"]


def test_the_head_of_a_run_counts_its_refusals_by_code(write_run, tmp_path):
    folder = write_run(tmp_path / "run", settings(), learning([0.5]), refused={"STALE": 12, "SHAPE": 1})
    assert "STALE 12, SHAPE 1" in Elements(page(read_runs([folder]))).text


def test_runs_without_result_are_listed_with_the_reason(compared, write_run, tmp_path):
    write_run(tmp_path / "good", settings(), learning([0.5, 0.6]))
    write_run(tmp_path / "bad", settings(seed=5), [], ended=None, error="no memory <left>")
    text = page(read_runs([tmp_path]))
    assert "no memory &lt;left&gt;" in text
    assert 'id="failed"' in text


def test_what_workers_say_is_text(hostile):
    text = page(read_runs([hostile]))
    elements = Elements(text)
    assert len(elements.of("script")) == text.count("<script")
    assert elements.of("img") == []
    assert "alert(1)</script>" not in text
    assert "\x1b" not in text + urllib.parse.unquote(text)
    assert "\u202e" not in text
    assert r"alert(1)</script>\x1b[31m" in elements.text
    assert html.escape(REASON.partition("\x1b")[0]) in text or "onerror" in elements.text
    data = data_of(text, "trust-data")
    assert any(row["worker"].startswith(HOSTILE[:8]) for row in data)


def data_of(text, id):
    """The rows of a file that the page offers."""
    link = next(one for one in Elements(text).of("a") if one.get("id") == id)
    head, _, content = link["href"].partition(",")
    assert head == "data:text/csv;charset=utf-8"
    return list(csv.DictReader(io.StringIO(urllib.parse.unquote(content))))


def test_the_page_asks_nothing_of_the_network(study_page):
    elements = Elements(study_page)
    for _, attributes in elements.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    policy = next(one["content"] for one in elements.of("meta") if "http-equiv" in one)
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"script-src [^;]*unsafe-inline", policy)
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)


def test_every_chart_has_its_data_and_its_words(study_page):
    elements = Elements(study_page)
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    charts = [one for one in elements.of("div") if one.get("class") == "chart"]
    assert charts
    for chart in charts:
        assert {chart["data-spec"], chart["data-source"]} <= set(ids)
        assert chart["data-description"]
        json.loads(chart["data-where"])
    for label in elements.of("label"):
        assert label.get("for", ids[0]) in ids


def test_the_numbers_of_curves_are_in_the_page(study_page, compared):
    rows = [row for row in data_of(study_page, "curves-accuracy-data") if row["round"] == "4"]
    for row in rows:
        values = [compared[1][row["rule"], row["attack"], seed][-1] for seed in (1, 2, 10)]
        assert float(row["mean"]) == pytest.approx(sum(values) / 3, rel=1e-5)
        assert (float(row["lowest"]), float(row["highest"])) == (min(values), max(values))
    assert len(rows) == 6


def test_commands_make_the_runs_again(study_page):
    commands = [row["command"] for row in data_of(study_page, "runs-data")]
    assert len(commands) == 18
    assert all(command.startswith("varangian run ") for command in commands)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["seed=7", "aggregator=nnm+krum", "byzantine.attack=alie", "byzantine.count=3", "backend=simulate"],
        ["aggregator={krum: {select: 3}}", "f=2", "partition.dirichlet.alpha=0.1", "model.mlp.hidden=10"],
        ["aggregator={rule: nnm+krum, per_block: true}", "f=2"],
        ["names=[a, '1e3', 'no', e, f, g, h]", "workers=7", "f=1", "optimizer.lr=1e-3"],
    ],
)
def test_a_command_makes_the_same_configuration(given):
    config = load(None, given).resolved()
    words = shlex.split(command_of(config))
    assert words[:2] == ["varangian", "run"]
    assert load(None, words[2:]).resolved() == config


def test_a_configuration_of_another_version_has_no_command():
    config = load(None, []).resolved()
    assert command_of({**config, "no_longer": 1}) is None


def test_data_that_a_link_carries_comes_back():
    rows = [["a,b", 1.0, None], ['"quoted"\n& 100 %#?', float("nan"), 0.123456789], ["=1+1", 3, "ü"]]
    table = Table("x", ("text", "number", "other"), rows, ("number",))
    text = urllib.parse.unquote(html.unescape(table.link).partition(",")[2])
    assert [*csv.reader(io.StringIO(text))] == [
        ["text", "number", "other"],
        ["a,b", "1.0", ""],
        ['"quoted"\\n& 100 %#?', "", "0.123457"],
        ["'=1+1", "3", "ü"],
    ]
    assert '"' not in table.link


def test_of_many_rules_the_best_are_drawn_at_first(tmp_path, write_run):
    for select in range(1, 11):
        rule = {"krum": {"f": 2, "select": select}}
        write_run(tmp_path / f"{select}", settings(aggregator=rule), learning([0.2, select / 20]))
    found = Elements(page(read_runs([tmp_path])))
    lines = [
        own for tag, own in found.tags if tag == "input" and own.get("id", "").startswith("curves-line")
    ]
    assert len(lines) == 10
    hidden = [own["value"] for own in lines if "checked" not in own]
    assert hidden == ["krum(select=1)", "krum(select=2)"]
