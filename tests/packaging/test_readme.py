"""What the documents show must work as it is written there."""

import pathlib
import re
import shlex

import pytest

from varangian.aggregators import RULES
from varangian.cli.arguments.main import parse
from varangian.config import load
from varangian.server.participation import PARTICIPATION

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")


def blocks(language):
    """The code blocks of one language, each named by its page and line."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1
            found.append(pytest.param(block[1], id=f"{page}:{line}"))
    return found


def commands(program):
    """The arguments of every call of a program in a shell block, without variables set before it."""
    lines = [line for param in blocks("sh") for line in param.values[0].splitlines()]
    called = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words and words[0] == program:
            called.append(pytest.param(words[1:], id=line.split("  ")[0]))
    return called


@pytest.mark.parametrize("source", blocks("python"))
def test_the_example_runs(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for registry in (RULES, PARTICIPATION):  # what an example registers goes again
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(compile(source, "example", "exec"), {"__name__": "example"})


@pytest.fixture
def folder_of_the_reader(tmp_path, monkeypatch):
    """Holds the YAML of the README as run.yaml."""
    (configuration,) = blocks("yaml")
    (tmp_path / "run.yaml").write_text(configuration.values[0])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", commands("varangian"))
@pytest.mark.usefixtures("folder_of_the_reader")
def test_the_command_is_understood(words):
    words = words[: words.index(">")] if ">" in words else words
    args = parse(words)
    if "settings" in args:
        load(args.config, args.settings, {}, whole=args.command in ("run", "check"))


@pytest.mark.parametrize("words", commands("make"))
def test_the_make_target_exists(words):
    (target,) = words
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_there_is_something_to_check():
    assert len(blocks("python")) >= 2
    assert len(commands("varangian")) >= 10
    assert {param.values[0][0] for param in commands("make")} >= {"demo", "test", "proto"}


def test_the_readme_names_every_extra(pyproject):
    readme = (ROOT / "README.md").read_text()
    extras = set(pyproject["project"]["optional-dependencies"]) - {"all"}
    assert {extra for extra in extras if f"| `{extra}` |" not in readme} == set()
