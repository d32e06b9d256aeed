"""Commands and links of the documents: they work as they are written there.

Comments before a code block, which readers do not see, say what becomes of it:

    <!-- file: run.yaml -->          it is written to that file before the page's commands run
    <!-- output -->                  it shows what a command prints, in some shell syntax
    <!-- not run: REASON -->         its commands are only parsed, and its settings loaded
    <!-- needs: PACKAGE -->          it is left out where the package is not installed
    <!-- exit: 2 -->                 the block ends with that exit code
    <!-- in: examples/text -->       it runs in a copy of that folder

The blocks of a page belong together: they run in order, in one folder. `python` blocks share their names.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
from tests.ports import free_port

from varangian.aggregators import RULES
from varangian.cli.arguments.main import parse
from varangian.config import load
from varangian.config.overrides import from_command_line
from varangian.experiments.redteam.command import read_config as read_redteam_config
from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.plan import make_plan
from varangian.server.participation import PARTICIPATION

ROOT = pathlib.Path(__file__).parents[2]


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


printed, drawn, measured = script("printed"), script("drawn"), script("measured")
DRAWINGS = drawn.drawn()
WRITTEN = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs").rglob("*.md")
    if path.relative_to(ROOT / "docs").parts[0] != "project"
)
PRINTED_HERE = {f"docs/reference/{name}.md" for name in ("settings", "commands", "metrics", "evidence")} | {
    f"docs/reference/{page}.md" for page, _ in printed.KINDS.values()
}
PAGES = ["README.md", "CONTRIBUTING.md", *(page for page in WRITTEN if page not in PRINTED_HERE)]
QUICK = "rounds=2 evaluate.every=2"
"""Settings of every run of a document: its commands are tried, and no model is trained."""


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    marks: dict

    @property
    def runs(self):
        missing = "needs" in self.marks and importlib.util.find_spec(self.marks["needs"]) is None
        return "not run" not in self.marks and "output" not in self.marks and not missing

    def __str__(self):
        return f"{self.page}:{self.line}"


@functools.cache
def blocks(page):
    """The code blocks of a page, in order, also those in lists and tabs."""
    text, found = (ROOT / page).read_text(), []
    fence = r"((?:^ *<!--[^>]*-->\n)*)^( *)```(\w+)[^\n]*\n(.*?)^\2```"
    for block in re.finditer(fence, text, re.MULTILINE | re.DOTALL):
        marks = dict(re.findall(r"<!-- ([\w ]+?)(?:: (.*?))? -->", block[1]))
        line = text.count("\n", 0, block.start(2)) + 1
        found.append(Block(page, line, block[3], textwrap.dedent(block[4]), marks))
    return found


def of_language(language):
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def commands(program):
    """The arguments of every call of a program in a shell block, without variables set before it."""
    for block in of_language("sh"):
        if "output" in block.marks:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r" && | \|\| |;| \| ", line.partition("  #")[0]):
                words = shlex.split(part, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words and words[0] == program:
                    yield pytest.param(words[1:], block, id=f"{block}: {part.strip()[:60]}")


def files(page, folder):
    """Writes what the page says is in files; a run.yaml that it does not show is an empty one."""
    (folder / "run.yaml").write_text("{}\n")
    for block in blocks(page):
        if "file" in block.marks:
            path = folder / block.marks["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in of_language("python") if block.runs))
def test_the_python_of_a_page_runs(page, monkeypatch, tmp_path):
    files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (RULES, PARTICIPATION):  # what an example registers goes again
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    names = {"__name__": "example"}
    for block in blocks(page):
        if block.language == "python" and "file" not in block.marks and block.runs:
            exec(compile("\n" * block.line + block.text, page, "exec"), names)


@pytest.fixture
def forgotten(monkeypatch, tmp_path):
    """What a command imports from the folder of a page is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("words", "block"), [*commands("varangian")])
def test_the_command_is_understood(words, block, tmp_path, monkeypatch):
    files(block.page, tmp_path)
    monkeypatch.chdir(ROOT / block.marks["in"] if "in" in block.marks else tmp_path)
    ends = [number for number, word in enumerate(words) if re.fullmatch(r"&|\d?>", word)]
    words = words[: min(ends, default=None)]
    args = parse(words)
    if args.command == "sweep" and args.config is not None:
        make_plan(GridFile.read(args.config, from_command_line(args.settings)))
    elif args.command == "redteam":
        read_redteam_config(args)
    elif "settings" in args and "exit" not in block.marks:
        load(args.config, args.settings, {}, whole=args.command in ("run", "check"))


@pytest.mark.parametrize(("words", "block"), [*commands("make")])
def test_the_make_target_exists(words, block):
    targets = [word for word in words if "=" not in word]
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.exhaustive  # test_the_command_is_understood keeps the promise that each can be typed
@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in of_language("sh") if block.runs))
def test_the_commands_of_a_page_run(page, tmp_path):
    """As one script, in which the first command that fails ends it."""
    files(page, tmp_path)
    port = free_port()
    programs = tmp_path / ".bin"
    programs.mkdir()
    for name, words in {"varangian": "-m varangian", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(page):
        if block.language == "sh" and block.runs:
            lines.append(f"echo '== {block}'")
            text = re.sub(r"\brounds([=:] ?)\d+", r"rounds\g<1>2", block.text.replace("50051", str(port)))
            if folder := block.marks.get("in"):
                shutil.copytree(ROOT / folder, tmp_path / folder)
                text = f"( cd {folder}\n{text})"
            if wanted := block.marks.get("exit"):
                text = f"( {text}\n) || test $? -eq {wanted}"
            lines.append(text)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}",
        "VARANGIAN_SETTINGS": QUICK,
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_there_is_something_to_check():
    assert len(of_language("python")) >= 15
    assert len([*commands("varangian")]) >= 50
    assert {param.values[0][0] for param in commands("make")} >= {"demo", "dev", "proto"}


def anchors(text):
    """The anchors of a page: its headings, as MkDocs and GitHub make them, and those written out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"\{ #([\w.-]+) \}", text))
    for heading in re.findall(r"^#+ (.*?)(?: \{.*\})?$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[|\]\(.*?\)", "", heading).lower()
        found.add(re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.fixture(scope="module")
def pages():
    """Every page of the site and every document, by its path; the printed ones as they would be."""
    texts = {f"docs/{page}": text for page, text in printed.printed(helps=False).items()}
    written = {page: (ROOT / page).read_text() for page in [*PAGES, *printed.PROJECT]}
    return texts | written


def test_every_link_leads_somewhere(pages):
    broken = []
    for page, text in pages.items():
        for target in re.findall(r"(?<!`)\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            if re.match(r"https?:", target):
                continue
            path, _, anchor = target.partition("#")
            to = os.path.normpath(pathlib.PurePath(page).parent / path) if path else page
            if to not in pages and not (ROOT / to).exists():
                broken.append(f"{page}: {target}")
            elif anchor and to in pages and anchor not in anchors(pages[to]):
                broken.append(f"{page}: {target} (no such heading)")
    assert broken == []


def test_every_path_that_a_document_names_exists(pages):
    places = [ROOT, ROOT / "src/varangian", *(ROOT / "src/varangian").iterdir()]
    named = {
        f"{page}: {path}": any((place / path).exists() for place in places)
        for page in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/security/encryption.md")
        for path in re.findall(r"`([a-z_]+(?:/[a-z_0-9]+)*(?:/|/[a-z_0-9]+\.\w+))`", pages[page])
        if path != "site/"  # which is built
    }
    assert {name for name, exists in named.items() if not exists} == set()
    assert len(named) > 40


def test_every_page_is_in_the_navigation(pages):
    navigation = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/-]+\.md$", navigation, re.MULTILINE))
    assert listed == {page.removeprefix("docs/") for page in pages if page.startswith("docs/")}


def test_measured_numbers_are_those_of_the_evidence():
    """`python docs/measured.py` writes them anew."""
    for page in measured.PAGES:
        assert page.read_text() == measured.written(page.read_text())


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_drawing_is_that_of_the_contracts(name):
    """`python docs/drawn.py` draws it anew."""
    assert (ROOT / "docs/images" / name).read_text() == DRAWINGS[name]


def properties(schema, below, path=""):
    for name, one in below["properties"].items():
        inner = [
            ref.rpartition("/")[2] for part in (one, *one.get("anyOf", ())) if (ref := part.get("$ref"))
        ]
        if "$ref" not in one:
            yield f"{path}{name}"
        for section in inner:
            if section in schema["$defs"] and "properties" in schema["$defs"][section]:
                yield from properties(schema, schema["$defs"][section], f"{path}{name}.")


def test_every_setting_is_on_its_page(pages):
    from varangian.config.settings import json_schema

    schema = json_schema()
    headings = re.findall(r"^### `(.*?)`", pages["docs/reference/settings.md"], re.MULTILINE)
    assert headings == sorted(properties(schema, schema), key=headings.index)
    assert len(headings) > 40


def test_every_name_is_on_its_page(pages):
    from varangian.cli.commands.list import REGISTRIES

    for plural, registry in REGISTRIES.items():
        text = pages[f"docs/reference/{printed.KINDS[plural][0]}.md"]
        assert [name for name in registry if not re.search(rf"^#+ `{name}`", text, re.MULTILINE)] == []


UNPUBLISHED = {"mean", "unit_mean", "cge", "clipping"}


def test_every_rule_and_mixing_names_its_source(pages):
    for page in ("rules", "mixings"):
        sections = pages[f"docs/reference/{page}.md"].split("\n## ")[1:]
        without = [text for text in sections if not re.search(r"\([^()]*\d{4}", text)]
        assert {text.split("`")[1] for text in without} <= UNPUBLISHED


def test_the_readme_names_every_extra(pyproject):
    readme = (ROOT / "docs/getting-started.md").read_text()
    extras = set(pyproject["project"]["optional-dependencies"])
    assert {extra for extra in extras if f"| `{extra}` |" not in readme} == set()
