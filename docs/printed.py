"""The pages of the site that are printed from the code: `python docs/printed.py` writes them below docs/.

They are not committed. Settings come from the JSON Schema, rules, attacks and other names from the
docstrings of their classes, commands from their help, the evidence from its results files; the documents at
the root of the repository are copied with their links mended.
"""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varangian.registry import Registry

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PROJECT = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""Documents outside docs/, and the page of each."""
KINDS = {
    "aggregators": ("rules", "Aggregation rules"),
    "mixings": ("mixings", "Mixings"),
    "attacks": ("attacks", "Attacks"),
    "participations": ("participations", "Participations"),
    "staleness": ("participations", "Weights by age"),
    "datasets": ("names", "Data sets"),
    "models": ("names", "Models"),
    "losses": ("names", "Losses"),
    "metrics": ("names", "Metrics"),
    "partitions": ("names", "Partitions"),
    "optimizers": ("names", "Optimizers"),
    "schedules": ("names", "Learning rate schedules"),
    "graphs": ("names", "Communication graphs"),
    "availability": ("names", "Availability"),
    "delays": ("names", "Delays"),
    "trackers": ("names", "Trackers"),
}
"""Kinds of `varangian list`: the page of each, and its title there."""
INTRODUCTIONS = {
    "rules": """# Aggregation rules

Every rule by the name that `aggregator=NAME` takes, with its settings, the condition on the number of rows
n and of Byzantine rows f, and the paper it is from. Where libraries disagree about a rule, a setting
chooses the convention: [conventions](conventions.md) compares them. [Robustness](../concepts/robustness.md)
explains the conditions and the coefficient κ; [mixings](mixings.md) come before a rule.

`aggregator=default` is short for `{default}`, a combination with a proven bound; a run shows and keeps its
parts.
""",
    "mixings": """# Mixings

Mixings replace the rows by combinations of them before a rule sees them: `aggregator=nnm+krum`, or with
settings `{mix: [{nnm: {f: 2}}], rule: krum}`. Several are applied from left to right. Beside `rule` may
stand `per_block: true`: [a rule for each layer](../how-to/choose-a-rule.md#a-rule-for-each-layer).
""",
    "attacks": """# Attacks

The attacks of the last `byzantine.count` workers, as `byzantine.attack=NAME`. Each says whose honest
gradients it sees: its `own`, those of its `colluders`, or those of `all`; `byzantine.knows` chooses
more, or no less than it needs. [Attackers](../concepts/attackers.md) explains what they know and can do.

In the table g is the own honest vector of an attacker, g_i are those that it sees, mean and std those of
each coordinate, c_i = g_i - mean, D is the largest distance of two of them, and p a direction: against the
mean or its signs, or -std. **Joint**: all attackers send the same, or each knows what the others send.
**Remembers**: it depends on earlier rounds. **Timed**: it chooses when it pushes. A strength that is
called `optimal` is searched on the rule of the run. Where an attack differs from its paper it says so.

An attack may have another one in a field, by name or with its fields:
`byzantine.attack={sleeper: {attack: {alie: {z: 1.5}}, after: 20}}`, or
`byzantine.attack.sleeper.attack.alie.z=1.5`.

`churn`, `equivocate`, `resend`, `size_lie`, `slow_drip`, `stale_push` and `wrong_shape` are attacks on the
protocol: they send honest vectors, or those of another attack in their field `attack`, otherwise than the
protocol says, so they need real connections and `backend=processes`, or `varangian worker`. `workers.log`
says what the server answered, and `refused` in `result.json` how often it refused.
""",
    "participations": """# Participations

The participations: which workers take part in a round, as `participation=NAME`. [Who takes part in a
round](../concepts/participation.md) explains them, with their guarantees and costs.
""",
    "names": """# Other names

Names of data, models, losses, metrics, partitions, schedules, graphs, simulated behaviour and trackers for
a configuration. `varangian list KIND` prints the same in a terminal.
""",
}


def printed(*, helps: bool = True) -> dict[str, str]:
    """Every page that is printed, by its path below docs/; without `helps` not that of the commands."""
    pages = {"reference/settings.md": settings(), **names()}
    pages["reference/commands.md"] = commands() if helps else ""
    pages["reference/metrics.md"] = metrics()
    pages["reference/evidence.md"] = evidence()
    pages["reference/coefficients.md"] = coefficients()
    return pages | {page: copied(source, page) for source, page in PROJECT.items()}


def main() -> None:
    for page, text in printed().items():
        path = DOCS / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:  # `mkdocs serve` watches
            path.write_text(text)


# Settings


def settings() -> str:
    """Every setting of the schema, by section."""
    from varangian.config.settings import json_schema

    schema = json_schema()
    texts = [
        "# Settings\n\nEvery setting of a configuration file, printed from `varangian schema`. On the\n"
        "command line each is `key=value`, in the environment `VARANGIAN__SECTION__KEY`; see [how to\n"
        "write a configuration](../how-to/configure.md).\n"
    ]
    sections = {name: _section(schema, below) for name, below in schema["properties"].items()}
    texts += ["## The run\n"]
    texts += [_setting(name, below) for name, below in schema["properties"].items() if not sections[name]]
    for name, section in sections.items():
        if section:
            texts.append(f"## `{name}`\n\n{escaped(section.get('description', ''))}\n")
            texts += _settings(schema, section, name)
    return "\n".join(texts)


def _settings(schema: Mapping[str, Any], section: Mapping[str, Any], path: str) -> Iterator[str]:
    """The settings of a section, and those of a section in it, which can be null."""
    for key, below in section["properties"].items():
        inner = next((found for one in below.get("anyOf", ()) if (found := _section(schema, one))), None)
        yield _setting(f"{path}.{key}", below)
        yield from () if inner is None else _settings(schema, inner, f"{path}.{key}")


def _section(schema: Mapping[str, Any], below: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a property of the schema stands for, if it is one."""
    name = below.get("$ref", "").rpartition("/")[2]
    section: Mapping[str, Any] | None = schema["$defs"].get(name)
    return section


def _setting(path: str, below: Mapping[str, Any]) -> str:
    default = below.get("default")
    shown = _shown(default)
    description = escaped(below.get("description", ""))
    facts = f"{_values(below)}; default `{shown}`"
    return f"### `{path}` {{ #{path} }}\n\n{facts}\n{{ .facts }}\n\n{description}\n"


def _shown(value: Any) -> str:
    """A default as it stands in a configuration."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _values(below: Mapping[str, Any]) -> str:
    """The values that may stand there, in words."""
    words = []
    for one in below.get("anyOf", [below]):
        if "$ref" in one:
            words.append("a mapping of the settings below")
        elif "const" in one:
            words.append(f"`{one['const']}`")
        elif "enum" in one:
            kind = re.match(r"The name of an? (.*)\.", one.get("description", ""))
            values = ", ".join(f"`{value}`" for value in one["enum"])
            words.append((kind and _named(kind[1])) or values)
        elif one.get("description", "").startswith("Your own, as "):
            words.append(one["description"].replace("Your own, as ", "your own as ").rstrip("."))
        elif "title" in one and one.get("type") == "object" and words:
            continue  # a name with its fields: the page of the names has them
        else:
            words.append(_type(one))
    return " or ".join(dict.fromkeys(word for word in words if word))


def _named(kind: str) -> str | None:
    """A link to the page with the names of a kind of registry."""
    from varangian.cli.commands.list import REGISTRIES

    plural = next((plural for plural, registry in REGISTRIES.items() if registry.kind == kind), None)
    if plural is None:
        return None
    page, title = KINDS[plural]
    anchor = f"#{_anchor(title)}" if page == "names" else ""
    article = "an" if kind[0] in "aeiou" else "a"
    return f"the name of {article} [{kind}]({page}.md{anchor}), bare or with its settings"


def _type(one: Mapping[str, Any]) -> str:
    names = {
        "integer": "an integer",
        "number": "a number",
        "string": "a text",
        "boolean": "`true` or `false`",
    }
    names |= {"null": "`null`", "array": "a list", "object": "a mapping"}
    kinds = one.get("type", [])
    text = " or ".join(names[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
    signs = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {one[key]}" for key, word in signs.items() if key in one and abs(one[key]) < 2**62]
    return f"{text} {' and '.join(bounds)}".strip()


# Names


def names() -> dict[str, str]:
    """The pages of everything that is registered."""
    from varangian.aggregators.spec import COMBINATIONS
    from varangian.cli.commands.list import REGISTRIES

    pages = {page: [text] for page, text in INTRODUCTIONS.items()}
    pages["rules"] = [INTRODUCTIONS["rules"].replace("{default}", COMBINATIONS["default"])]
    for plural, registry in REGISTRIES.items():
        page, title = KINDS[plural]
        alone = [page for page, _ in KINDS.values()].count(page) == 1
        if not alone and (page, title) != KINDS["participations"]:
            pages[page].append(f"## {title}\n")
        level = "###" if not alone and (page, title) != KINDS["participations"] else "##"
        pages[page] += _attacks(registry) if plural == "attacks" else []
        pages[page] += [_entry(plural, registry, name, level) for name in registry]
    return {f"reference/{page}.md": "\n".join(texts) for page, texts in pages.items()}


def _attacks(registry: Registry[Any]) -> list[str]:
    """A table of all attacks: what each sends, as a formula, what it sees, its kind, and its source."""
    rows = ["| attack | vector that is sent | sees | kind | source |", "|---|---|---|---|---|"]
    for name in registry:
        cls, _ = registry.entry(name)
        attack, doc = registry.build(name, name), inspect.getdoc(cls) or ""
        vector = re.search(r"^Vector: (.*?)\.(?:\nSource:|$)", doc, re.DOTALL | re.MULTILINE)
        assert vector, f"the docstring of {cls.__name__} should end with a line `Vector: ...`"
        cells = (
            f"[`{name}`](#{name})",
            vector[1],
            _sight(attack),
            ", ".join(_kinds(attack)),
            _paper(doc),
        )
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return [*rows, ""]


def _sight(attack: Any) -> str:
    """The honest vectors that an attack sees, and the least that it can do with."""
    least = getattr(attack, "needs", None)
    if least is None:
        return "its own samples" if hasattr(attack, "poisons") else "its own vector"
    usual = getattr(attack, "usual", least)
    return f"`{usual}`" if usual == least else f"`{usual}`, or `{least}`"


def _kinds(attack: Any) -> Iterator[str]:
    """Words for the interfaces that an attack has."""
    from varangian.worker.attacks import is_joint

    if hasattr(attack, "send"):
        yield "on the protocol"
    if hasattr(attack, "poisons"):
        yield "on the data"
    if is_joint(attack):
        yield "joint"
    if hasattr(attack, "start"):
        yield "may remember" if hasattr(attack, "remembers") else "remembers"
    if "delay" in vars(type(attack)):  # else it is that of an inner attack
        yield "timed"


def _paper(doc: str) -> str:
    """The line `Source: ...` of a docstring, or else the first paper that it quotes."""
    if stated := re.search(r"^Source: (.*)\.$", doc, re.DOTALL | re.MULTILINE):
        return stated[1].replace('"', "")
    quoted = re.search(r'"([^"]{12,})" \(([^()]+, \d{4})\)', " ".join(doc.split()))
    assert quoted, f"a docstring should quote a paper, or have a line `Source: ...`: {doc[:60]}"
    return f"{quoted[1]} ({quoted[2]})"


def _entry(plural: str, registry: Any, name: str, level: str) -> str:
    from varangian.cli.commands.list import describe_entry
    from varangian.config.schema import field_docs
    from varangian.registry import describe_type

    cls, preset = registry.entry(name)
    texts = [f"{level} `{name}` {{ #{name} }}\n", f"{markdown(inspect.getdoc(cls) or '')}\n"]
    if needs := getattr(cls, "needs", None):
        least = registry.build(name, name).needs if isinstance(needs, property) else needs
        usual = getattr(cls, "usual", least)
        more = "" if isinstance(usual, property) or usual == least else f", and usually sees `{usual}`"
        more += "; with other settings it may be more" if isinstance(needs, property) else ""
        texts.append(f"Needs to see: `{least}`{more}.\n")
    if preset:
        texts.append(
            f"`{name}` is the same class with {', '.join(f'`{k}: {v}`' for k, v in preset.items())}.\n"
        )
    docs, fields = field_docs(cls), registry.fields(name)
    if fields:
        texts += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for field in fields:
            values, meaning = describe_type(field.hint), docs.get(field.name, "")
            cells = (f"`{field.name}`", values, _default(field), meaning)
            texts.append(f"| {' | '.join(map(_cell, cells))} |")
        texts.append("")
    lines = list(describe_entry(registry, name))
    if plural in ("aggregators", "mixings") and len(lines) > 2 + len(fields):
        texts.append(f"{lines[-1].strip()}\n")
    texts.append(f"Code: `{_source(cls)}`\n{{ .facts }}\n")
    return "\n".join(texts)


def _default(field: Any) -> str:
    from varangian.registry import MISSING

    if field.default is MISSING:
        return "the run's `f`" if field.name == "f" else "required"
    return f"`{'null' if field.short_default is None else field.short_default}`"


def _source(cls: type[Any]) -> str:
    """Where a class is, from the root of the repository."""
    path = "/".join(cls.__module__.split(".")[1:]) + ".py"
    return path if (ROOT / path).exists() else f"src/varangian/{path}"


# Commands


def commands() -> str:
    """The help of every command."""
    texts = ["# Commands\n\nWhat `varangian COMMAND --help` prints.\n", _help()]
    from varangian.cli.arguments.main import COMMANDS

    texts += [_help(name) for name in COMMANDS]
    return "\n".join(texts)


def _help(*command: str) -> str:
    words = [sys.executable, "-m", "varangian", *command, "--help"]
    environment = os.environ | {"COLUMNS": "90", "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
    return f"## `{' '.join(['varangian', *command])}`\n\n```text\n{shown.strip()}\n```\n"


# Metrics

METRICS = """# Metrics

What a server with a metrics port (`server.metrics_port`) exposes at `/metrics`, for Prometheus: see
[watch a run](../operations/watch.md#prometheus-and-grafana). Names have base units. Labels are names of the
run's workers and codes of tables, so their number is bounded whatever others do; a worker that has left the
run has no series any more. Counters begin with the start of the server. Beside these there are the
`process_*` metrics of every program with the client library: memory, processor, open files, start time.

"""


def metrics() -> str:
    """The table of metrics."""
    from varangian.server.observability.metric_table import as_markdown

    return METRICS + as_markdown()


# Evidence


def evidence() -> str:
    """The tables of worst cases, from their results files."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from evidence.catalogue import TABLES
    from evidence.markdown import page
    from evidence.results import stored

    return page(stored(TABLES))


COEFFICIENTS = """# Robustness coefficients

For each rule the proven coefficient κ ([robustness](../concepts/robustness.md)), as `Aggregator.kappa`
returns it, beside the largest ratio |F - mean|² / spread that a search finds over rows and over every
set of n - f of them: a lower bound of the best possible coefficient κ* of the rule (arXiv 2602.03899).
No rule can have less than f / (n - 2 f). A ratio above 10⁶ means that the rule has no coefficient. The
search is short, and one with more steps finds more; behind `bucketing` the ratio is for one draw of the
groups.

`python benchmarks/kappa.py --json benchmarks/results/kappa.json` searches again, with the same result
for the same seed. The file has the rows of each ratio.
"""


def coefficients() -> str:
    """The table of proven and found coefficients, from its results file."""
    found = json.loads((ROOT / "benchmarks/results/kappa.json").read_text())["found"]
    cases = list(dict.fromkeys((one["n"], one["f"]) for one in found))
    cells = {(one["aggregator"], one["n"], one["f"]): one for one in found}
    heads = [f"n = {n}, f = {f}: {kind}" for n, f in cases for kind in ("proven", "found")]
    least = [cell for n, f in cases for cell in ("", f"at least {f / (n - 2 * f):.3g}")]
    rows = [["rule", *heads], ["---"] * (len(heads) + 1), ["any", *least]]
    for name in dict.fromkeys(one["aggregator"] for one in found):
        of_cases = [cell for n, f in cases for cell in _coefficient(cells.get((name, n, f)))]
        rows.append([f"`{name}`", *of_cases])
    return "\n".join([COEFFICIENTS, *(f"| {' | '.join(row)} |" for row in rows), ""])


def _coefficient(one: Mapping[str, Any] | None) -> tuple[str, str]:
    """The proven coefficient and the largest ratio of one rule, or why there is none."""
    if one is None:
        return "too few rows", ""
    proven = "none" if one["proven"] is None else f"{one['proven']:.3g}"
    return proven, "over 10⁶" if one["ratio"] > 1e6 else f"{one['ratio']:.3g}"


# Documents at the root


def copied(source: str, page: str) -> str:
    """A document at the root as a page: links lead to pages, and what is no page is named only."""
    here = (ROOT / source).parent

    def mended(link: re.Match[str]) -> str:
        shown, target = link[1], link[2]
        if re.match(r"https?:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        found = os.path.relpath(here / path, ROOT)
        if found.startswith("docs/"):
            other = found.removeprefix("docs/")
        elif found in PROJECT:
            other = PROJECT[found]
        else:
            return f"{shown} (`{found}`)" if shown.strip("`") != found else f"`{found}`"
        to = os.path.relpath(other, pathlib.PurePath(page).parent)
        return f"[{shown}]({to}{f'#{anchor}' if anchor else ''})"

    text = re.sub(r"(?<!`)\[([^\]\[]+)\]\(([^)\s]+)\)", mended, (ROOT / source).read_text())
    return re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)


# Text


def markdown(doc: str) -> str:
    """A docstring as Markdown: `Raises:` and its like become bold, and nothing is taken for a mark."""
    doc = re.sub(r"^(Raises|Returns|Args|Yields):$", r"**\1**\n", doc, flags=re.MULTILINE)
    doc = re.sub(r"\n(Vector|Source): ", r"\n\n\1: ", doc)
    return escaped(re.sub(r"^ {4,}", "", doc, flags=re.MULTILINE))


def escaped(text: str) -> str:
    """Text in which `<` and `*` outside of code are themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*") for part in parts
    )


def _cell(text: str) -> str:
    return escaped(" ".join(text.split())).replace("|", r"\|")


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


if __name__ == "__main__":
    main()
