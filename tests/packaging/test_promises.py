"""Promises of the pages, held by the code."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def functions(path):
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def named(page):
    """The tests that a page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())


PROMISES, CLAIMS = named("docs/security/defences.md"), named("docs/security/encryption.md")
FAULTS = named("docs/FAULTS.md")


@pytest.mark.parametrize(("path", "name"), sorted({*PROMISES, *CLAIMS, *FAULTS}))
def test_every_promise_has_its_test(path, name):
    assert name in functions(path)


def test_no_promise_is_without_a_test():
    page = (ROOT / "docs/security/defences.md").read_text()
    table = page[page.index("| promise | test |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(PROMISES) >= 30


def rows(page):
    """The cells of the tables of a page, but for their headings."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [row for row in cells if row[0] not in ("#", "promise")]


def test_every_fault_has_a_test_or_a_reason():
    faults = [row for row in rows("docs/FAULTS.md") if len(row) == 4]
    assert [row[0] for row in faults] == [f"{number}" for number in range(1, 89)]
    promises = [row for row in rows("docs/FAULTS.md") if len(row) == 2]
    assert [row[0][:3] for row in promises] == [f"P{number}:" for number in range(1, 9)]
    for *_, shown in (*faults, *promises):
        scripts = re.findall(r"`(benchmarks/\w+\.py)`", shown)
        assert all((ROOT / script).is_file() for script in scripts)
        assert scripts or re.search(r"`tests/[\w/]+\.py::\w+`", shown) or shown.startswith("reason: ")
