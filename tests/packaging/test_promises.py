"""Promises of the pages, held by the code."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def functions(path):
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def named(page):
    """The tests that a page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())


PROMISES, CLAIMS = named("docs/security/defences.md"), named("docs/security/encryption.md")


@pytest.mark.parametrize(("path", "name"), sorted({*PROMISES, *CLAIMS}))
def test_every_promise_of_security_has_its_test(path, name):
    assert name in functions(path)


def test_no_promise_is_without_a_test():
    page = (ROOT / "docs/security/defences.md").read_text()
    table = page[page.index("| promise | test |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(PROMISES) >= 30
