"""The page of the evidence, and its tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evidence.catalogue import HERE, Table

INTRODUCTION = HERE / "introduction.md"
LARGE = 100
"""Times the length of the mean; a longer way is that of a model that has diverged."""


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
    if "costs" in content:
        yield f"{table_of_costs(content['costs'])}\n"
    for group in content["groups"]:
        yield f'??? note "{_where(group) or "Attack by attack"}: attack by attack"\n'
        yield from (f"    {line}" for line in attack_by_attack(group, content["seeds"]).splitlines())
        yield ""


def table_of_worst_cases(content: Mapping[str, Any]) -> str:
    """A row for each rule in each setting, with the attack that does it; the best of a setting is bold.

    The rules in the order of their worst cases, those without any last.
    """
    groups: Sequence[Mapping[str, Any]] = content["groups"]
    settings = list(dict.fromkeys(path for group in groups for path in group["varying"]))
    texts = [*settings, "rule", "worst case by"]
    numbers = ["no attack", "worst case", "worst run", "step", "length", "equal length"]
    rows = list[list[str]]()
    for group in groups:
        best = max(
            (row["worst"] for row in group["rows"] if row["complete"] and row["worst"] is not None),
            default=None,
        )
        ordered = sorted(group["rows"], key=lambda row: -(row["worst"] if row["worst"] is not None else -1))
        for row in ordered:
            rows.append(
                [
                    *(str(group["varying"].get(path, "")) for path in settings),
                    f"`{row['aggregator']}`",
                    str(row["worst_attack"] or "-"),
                    percent(row["clean"]),
                    _worst(row, best),
                    percent(row["worst_run"]),
                    _times(row.get("step")),
                    _times(row["length"]),
                    percent(row["at_equal_length"]),
                ]
            )
    return _markdown([*texts, *numbers], rows, left=len(texts))


def _worst(row: Mapping[str, Any], best: float | None) -> str:
    """The worst case with the deviation over its seeds; bold where it is the best of its setting."""
    if row["worst"] is None:
        return "-"
    text = percent(row["worst"])
    text = f"**{text}**" if row["complete"] and row["worst"] == best else text
    deviation = row["attacks"][row["worst_attack"]][1]
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{'' if row['complete'] else '≤ '}{text}{spread}"


def _times(ratio: float | None) -> str:
    """A length in lengths of the mean; of a model that has diverged only that it is large."""
    return "-" if ratio is None else f"> {LARGE}" if ratio > LARGE else f"{ratio:.2g}"


def table_of_costs(costs: Sequence[Mapping[str, Any]]) -> str:
    """What each attack on the protocol costs: a row for each attack and rule."""
    headings = [
        "attack",
        "rule",
        "accuracy",
        "s per round",
        "median s",
        "missed",
        "honest missed",
        "f spent",
        "refused",
    ]
    attacks = list(dict.fromkeys(row["attack"] for row in costs))
    rows = [
        [
            "no attack" if row["attack"] == "none" else row["attack"],
            f"`{row['aggregator']}`",
            percent(row["accuracy"]),
            f"{row['seconds_per_round']:.3f}",
            f"{row['median_seconds']:.3f}",
            f"{percent(row['attackers_missed'])} %",
            f"{percent(row['honest_missed'])} %",
            f"{row['proven_faults']:g}",
            ", ".join(f"{code} {count:g}" for code, count in row["refused"].items()) or "-",
        ]
        for row in sorted(costs, key=lambda row: attacks.index(row["attack"]))
    ]
    return _markdown(headings, rows, left=2)


def attack_by_attack(group: Mapping[str, Any], seeds: int) -> str:
    """Every attack in a column: mean ± standard deviation over seeds."""
    attacks = list(dict.fromkeys(attack for row in group["rows"] for attack in row["attacks"]))
    rows = [
        [
            f"`{row['aggregator']}`",
            percent(row["clean"]),
            *(_cell(row["attacks"].get(attack), seeds) for attack in attacks),
        ]
        for row in group["rows"]
    ]
    return _markdown(["rule", "no attack", *attacks], rows, left=1)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cell(cell: Sequence[Any] | None, seeds: int) -> str:
    if cell is None or cell[0] is None:
        return "-"
    deviation = "" if cell[1] is None else f" ± {100 * cell[1]:.1f}"
    few = "" if cell[3] == seeds else f" ({cell[3]} of {seeds})"
    return f"{percent(cell[0])}{deviation}{few}{' !' if len(cell) > 4 else ''}"


def _where(group: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} {value}" for path, value in group["varying"].items())


def _markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    ends = ["---" if i < left else "---:" for i in range(len(headings))]
    lines = [headings, ends, *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
