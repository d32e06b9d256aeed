"""The page about participation says what the program does."""

import re
import shlex
from pathlib import Path

import pytest

from varangian.config import RunConfig, load, loads
from varangian.config.yaml_text import parse
from varangian.protos.refusals import Refusal
from varangian.registry import to_plain
from varangian.server.participation import PARTICIPATION
from varangian.server.participation.staleness import STALENESS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "concepts" / "participation.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"\n## `(\w+)`\n(.*?)(?=\n## )", DOCUMENT, re.DOTALL))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
RUNS = [
    line.removeprefix("varangian run ")
    for kind, text in BLOCKS
    for line in text.splitlines()
    if kind == "sh" and line.startswith("varangian run")
]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if line[:1] == "|"
]


def test_every_participation_has_a_section_and_its_lines_in_the_tables():
    assert sorted(SECTIONS) == [*PARTICIPATION]
    named = [row[0].strip("`") for row in ROWS if row[0].strip("`") in PARTICIPATION]
    assert sorted(named) == sorted([*PARTICIPATION] * 2)


@pytest.mark.parametrize("name", [*PARTICIPATION])
def test_a_section_has_every_setting_with_its_default(name):
    told = re.findall(r"^\| `(\w+)` \| (\S+) \|", SECTIONS[name], re.MULTILINE)
    values = [(field.name, to_plain(field.short_default)) for field in PARTICIPATION.fields(name)]
    assert [(field, default.strip("`")) for field, default in told] == [
        (field, "null" if value is None else str(value)) for field, value in values
    ]


def test_every_weight_by_age_is_told():
    assert all(f"`{name}`" in SECTIONS["async"] for name in STALENESS)


def test_the_answers_exist():
    assert set(re.findall(r"`([A-Z_]{4,})`", DOCUMENT)) <= set(Refusal.__members__)


@pytest.mark.parametrize("line", RUNS)
def test_a_run_that_is_shown_would_start(line):
    words = shlex.split(line)
    assert load(None, words).participation.setting().partition(".")[2] in line


def test_both_spellings_are_the_same_run():
    first, second = (loads(parse(text, "the page")) for kind, text in BLOCKS if kind == "yaml")
    assert isinstance(first, RunConfig)
    assert first == second
