"""The page of the evidence, and its tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evidence.catalogue import HERE, Table

INTRODUCTION = HERE / "introduction.md"


def page(stored: Iterable[tuple[Table, Mapping[str, Any]]]) -> str:
    """The page: for each table the worst cases, then attack by attack."""
    return "\n".join(
        [INTRODUCTION.read_text(), *(part for table, content in stored for part in _table(table, content))]
    )


def _table(table: Table, content: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {table.title} {{ #{table.name} }}\n"
    yield f"{table.says}\n"
    runs = f"{content['runs']} runs"
    if content["without_result"]:
        runs += f", {content['without_result']} more without a result"
    seeds = "one seed" if content["seeds"] == 1 else f"{content['seeds']} seeds"
    rounds = ", ".join(map(str, sorted({group["rounds"] for group in content["groups"]})))
    hours = f"{content['hours_of_one_core']:.1f} hours of one core"
    yield f"`{content['command']}`: {runs}, {seeds}, {rounds} rounds, {hours}."
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    yield f"{{ .facts }}\n\n{versions}; {content['machine']}.\n{{ .facts }}\n"
    yield f"{table_of_worst_cases(content)}\n"
    for group in content["groups"]:
        yield f'??? note "{_where(group) or "Attack by attack"}: attack by attack"\n'
        yield from (f"    {line}" for line in attack_by_attack(group).splitlines())
        yield ""


def table_of_worst_cases(content: Mapping[str, Any]) -> str:
    """A row for each rule in each setting, with the attack that does it; the best of a setting is bold."""
    groups: Sequence[Mapping[str, Any]] = content["groups"]
    settings = list(dict.fromkeys(path for group in groups for path in group["varying"]))
    headings = [*settings, "rule", "no attack", "worst case", "by", "worst run", "equal length", "length"]
    rows = list[list[str]]()
    for group in groups:
        best = max(
            (row["worst"] for row in group["rows"] if row["complete"] and row["worst"] is not None),
            default=None,
        )
        ordered = sorted(group["rows"], key=lambda row: -(row["worst"] if row["worst"] is not None else -1))
        for row in ordered:
            worst = percent(row["worst"]) if row["complete"] else f"≤ {percent(row['worst'])}"
            rows.append(
                [
                    *(str(group["varying"].get(path, "")) for path in settings),
                    f"`{row['aggregator']}`",
                    percent(row["clean"]),
                    f"**{worst}**" if row["worst"] == best and best is not None else worst,
                    str(row["worst_attack"] or "-"),
                    percent(row["worst_run"]),
                    percent(row["at_equal_length"]),
                    "-" if row["length"] is None else f"{row['length']:.2g}",
                ]
            )
    return _markdown(headings, rows, left=len(settings) + 1)


def attack_by_attack(group: Mapping[str, Any]) -> str:
    """Every attack in a column: mean ± standard deviation over seeds."""
    attacks = list(dict.fromkeys(attack for row in group["rows"] for attack in row["attacks"]))
    rows = [
        [
            f"`{row['aggregator']}`",
            percent(row["clean"]),
            *(_cell(row["attacks"].get(attack)) for attack in attacks),
        ]
        for row in group["rows"]
    ]
    return _markdown(["rule", "no attack", *attacks], rows, left=1)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(cell: Sequence[Any] | None) -> str:
    if cell is None or cell[0] is None:
        return "-"
    deviation = "" if cell[1] is None else f" ± {100 * cell[1]:.1f}"
    return f"{percent(cell[0])}{deviation}{' !' if len(cell) > 4 else ''}"


def _where(group: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} {value}" for path, value in group["varying"].items())


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    ends = ["---" if i < left else "---:" for i in range(len(headings))]
    lines = [headings, ends, *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
