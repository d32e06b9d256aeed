"""The measured numbers of pages of the site: `python docs/measured.py` writes them.

A block stands between `<!-- measured: NAME -->` and `<!-- end -->`. The numbers are those that
`varangian advise` reads, and of red teams those of benchmarks/results/redteam.json; a test compares the
committed pages with them.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import yaml

from varangian.experiments.advice.choice import MOMENTUM, choose, holds, like
from varangian.experiments.advice.evidence import Row, Table, evidence, words_of
from varangian.experiments.advice.question import ask

HOW_TO = pathlib.Path(__file__).parent / "how-to"
PAGES = (HOW_TO / "choose-a-rule.md", HOW_TO / "redteam.md")
RED_TEAMS = pathlib.Path(__file__).parents[1] / "benchmarks/results/redteam.json"
BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CASES = (
    ("workers with similar data", {"partition": "iid"}),
    ("data that differ somewhat (`dirichlet`, alpha 1)", {"partition": {"dirichlet": {"alpha": 1.0}}}),
    ("data that differ much (`dirichlet`, alpha 0.1)", {"partition": {"dirichlet": {"alpha": 0.1}}}),
    ("you do not know", {}),
)
"""Rows of the decision table: words, and the settings asked about."""
FAILS = 0.1
"""A rule fails where its worst case is so far below the mean without attack."""
NOT_YET = "Not measured.\n"


def written(text: str) -> str:
    """The page with every block as it would be written now."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n{block[3]}", text)


def decisions() -> str:
    """The advised rule by data and number of attackers."""
    rows = list[Sequence[str]]()
    for words, settings in CASES:
        for f in (1, 3, 6):
            best = choose(ask({"workers": 15, "f": f, **settings}), evidence()).best
            for table, row in () if best is None else best.rows:
                if table.f == f and settings.get("partition", table.partition) == table.partition:
                    numbers = (worst_of(row), percent(row.clean), percent(table.clean))
                    rule = f"`{row.aggregator}`" if holds(table, row) else f"none holds; `{row.aggregator}`"
                    rows.append((words, str(f), rule, *numbers, f"{table.data}, {short(table)}"))
    heads = (
        "your case",
        "f of 15",
        "rule",
        "worst case",
        "without attack",
        "mean without attack",
        "measured with",
    )
    return markdown(heads, rows)


def failures() -> str:
    """Rules whose worst case is far below the mean without attack, in the worst setting of each."""
    found: dict[str, tuple[float, Table, Row]] = {}
    for table in general():
        for name, row in table.rows.items():
            lost = (table.clean or 0.0) - row.worst[0]
            if lost > max(FAILS, found.get(name, (0.0,))[0]):
                found[name] = (lost, table, row)
    rows = [
        (
            f"`{name}`",
            percent(row.worst[0]),
            row.worst[1],
            percent(row.clean),
            f"{table.data}, {short(table)}",
        )
        for name, (_, table, row) in sorted(found.items(), key=lambda entry: -entry[1][0])
    ]
    return markdown(("rule", "worst case", "attack", "without attack", "where"), rows)


def labels() -> str:
    """The mean and the best robust rule where all labels of attackers are wrong.

    By the tables of label poisoning alone, if there are any; of two tables alike that of more seeds.
    """
    rows = dict[tuple[str, str], Sequence[str]]()
    alone = [table for table in evidence() if table.all_poisoned]
    for table in sorted(alone or evidence(), key=lambda table: table.seeds):
        poisoned = table.poisoned
        mean = poisoned.rows.get("mean")
        others = [row for name, row in poisoned.rows.items() if name not in ("mean", "unit_mean")]
        if mean is None or not others or table.declared != table.f:
            continue
        for attack, value in mean.attacks.items():
            known = [row for row in others if attack in row.attacks]
            if "rate=0." in attack:
                continue
            best = max(known, key=lambda row: row.attacks[attack])
            lost = min(known, key=lambda row: row.attacks[attack])
            cells = (f"{percent(row.attacks[attack])} (`{row.aggregator}`)" for row in (best, lost))
            where = f"{table.data}, {short(table)}"
            rows[where, attack] = (where, attack, percent(value), *cells)
    heads = ("where", "attack", "mean", "best robust rule", "weakest robust rule")
    return markdown(heads, [rows[key] for key in sorted(rows)])


def momentum() -> str:
    """Worst cases without and with momentum at the workers."""
    rows = list[Sequence[str]]()
    for table in general():
        other = like(table, evidence(), momentum=MOMENTUM) if table.momentum == 0 else None
        for name in table.rows if other is not None else ():
            if other is not None and name in other.rows and name != "mean":
                pair = (worst_of(table.rows[name]), worst_of(other.rows[name]))
                rows.append(
                    (
                        f"`{name}`",
                        *pair,
                        f"{table.data}, n = {table.n}, f = {table.f}, {words_of(table.partition)}",
                    )
                )
    return markdown(("rule", "momentum 0", f"momentum {MOMENTUM}", "where"), rows)


def declared() -> str:
    """Worst cases, and accuracies without attack, with the f that attack declared and with more."""
    groups: dict[str, list[Table]] = {}
    for table in evidence():
        right = like(table, evidence(), declared=table.f) if table.declared > table.f else None
        if right is not None:
            groups.setdefault(right.label, [right]).append(table)
    texts = list[str]()
    for right, *others in groups.values():
        tables = sorted([right, *others], key=lambda table: table.declared)
        heads = ["rule", *(f"f={table.declared}" for table in tables)]
        rows = [
            (f"`{name}`", *(of_both(table.rows.get(name)) for table in tables))
            for name in right.rows
            if any(name in table.rows for table in others)
        ]
        where = f"{right.data}, n = {right.n}, {right.f} attack, {words_of(right.partition)}"
        texts.append(f"{where}: worst case, and without attack\n\n{markdown(heads, rows)}")
    return "\n".join(texts) or NOT_YET


def red_teams() -> str:
    """The strongest policy of each search, beside the strongest attack of the catalogue."""
    rows = list[Sequence[str]]()
    for case in json.loads(RED_TEAMS.read_text()):
        found, known, clean = (case[kind] for kind in ("policy", "catalogue", "clean"))
        parts = (case["search_seconds"], case["confirmation_seconds"])
        seconds = "-" if None in parts else " + ".join(f"{part:.0f}" for part in parts) + " s"
        names = (f"`{case['aggregator']}`", ", ".join(f"`{text}`" for text in case["settings"]))
        numbers = (f"{scores(one)} `{flow(one['attack'])}`" for one in (found, known))
        rows.append((*names, *numbers, scores(clean), seconds))
    heads = ("rule", "settings", "strongest policy", "strongest of the catalogue", "no attack", "time")
    return markdown(heads, rows)


def scores(one: Mapping[str, Any]) -> str:
    """The mean accuracy over seeds, and the lowest and the highest."""
    found = one["accuracies"]
    return f"{percent(fmean(found))} ({percent(min(found))} to {percent(max(found))})"


def flow(attack: Any) -> str:
    """An attack as it is typed after `byzantine.attack=`."""
    if isinstance(attack, str):
        return attack
    return yaml.safe_dump(attack, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def of_both(row: Row | None) -> str:
    return "-" if row is None else f"{worst_of(row)}, {percent(row.clean)}"


def general() -> Iterator[Table]:
    """Tables of attacks on vectors, with the right f declared, at most a fifth of the workers."""
    for table in evidence():
        if not table.all_poisoned and table.declared == table.f and 5 * table.f <= table.n:
            yield table


def short(table: Table) -> str:
    return f"f = {table.f}, {words_of(table.partition)}, momentum {table.momentum:g}"


def worst_of(row: Row) -> str:
    value, attack = row.worst
    return f"{percent(value)} ({attack})"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = [*rows]
    if not rows:
        return NOT_YET
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


BLOCKS = {
    "decisions": decisions,
    "failures": failures,
    "labels": labels,
    "momentum": momentum,
    "declared": declared,
    "red_teams": red_teams,
}


def main() -> None:
    for page in PAGES:
        page.write_text(written(page.read_text()))


if __name__ == "__main__":
    main()
