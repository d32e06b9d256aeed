"""The examples in the documentation are true."""

import doctest
import re
import typing
from pathlib import Path

import pytest
from tests.aggregators import kit

import varangian.aggregators
from varangian.aggregators import MIXINGS, RULES, aggregator_from

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "conventions.md").read_text("utf-8")
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if line.startswith("| `")
]
BY_NAME = {cells[0].split("`")[1]: cells for cells in TABLE if len(cells) == 6}


def test_package_docstring() -> None:
    result = doctest.testmod(varangian.aggregators)
    assert result.attempted > 10
    assert result.failed == 0


def test_table_has_every_rule_and_mixing() -> None:
    assert sorted(BY_NAME) == sorted([*RULES, *MIXINGS])
    assert {name for name, cells in BY_NAME.items() if "(mixing)" in cells[0]} == set(MIXINGS)


@pytest.mark.parametrize("name", [name for name, cells in BY_NAME.items() if cells[2].startswith("n >=")])
def test_table_has_the_condition(name: str) -> None:
    match = re.match(r"n >= (?:(\d) )?f \+ (\d)", BY_NAME[name][2])
    for f in (0, 1, 3):
        spec: object = {"mix": [name], "rule": "mean"} if name in MIXINGS else name
        assert kit.least_n(aggregator_from(spec, "a", f=f)) == int(match[1] or 1) * f + int(match[2])


@pytest.mark.parametrize("name", [name for name, cells in BY_NAME.items() if cells[2] == "none"])
def test_table_says_who_asks_for_nothing(name: str) -> None:
    fields = kit.FIELDS.get(name, {})
    part = (MIXINGS if name in MIXINGS else RULES).build({name: fields}, "a", {"f": 3})
    assert part.requires(1, 3) is None


@pytest.mark.parametrize("name", [*RULES, *MIXINGS])
def test_table_has_every_choice(name: str) -> None:
    """Fields with a few named values are conventions; `multi_krum` has those of `krum`."""
    registry = MIXINGS if name in MIXINGS else RULES
    told = BY_NAME[name][4] + (BY_NAME["krum"][4] if name == "multi_krum" else "")
    for field in registry.fields(name):
        for choice in typing.get_args(field.hint):
            if isinstance(choice, str):
                assert f"`{choice}`" in told, f"{field.name}: {choice}"


def test_table_marks_who_has_a_coefficient() -> None:
    marked = {name for name, cells in BY_NAME.items() if cells[3].startswith("κ") and name in RULES}
    assert marked == {name for name in RULES if aggregator_from(name, "a", f=1).kappa(9) is not None}
