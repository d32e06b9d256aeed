"""Red teams against several rules: the strongest policy of each search beside the strongest known attack.

    python benchmarks/redteam.py --list
    python benchmarks/redteam.py krum-f3 median-f6
    python benchmarks/redteam.py --json benchmarks/results/redteam.json

Each case is one `varangian redteam` without a budget, on the settings of `evidence/digits-base.yaml`. A
case that is there goes on where it was, or is read from its folder. Cases in the results file that are not
named stay.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASE = HERE / "evidence/digits-base.yaml"
RESULTS = HERE / "results/redteam.json"
RULES = (
    "arc+caf",
    "arc+nnm+geometric_median",
    "arc+nnm+unit_mean",
    "nnm+median",
    "krum",
    "median",
    "flag",
    "nnm+trimmed_mean",
    "unit_mean",
)
SETTINGS = {
    "f3": ("f=3", "worker.momentum=0.9"),
    "f6": ("f=6", "worker.momentum=0.9"),
    "f3-dirichlet": ("f=3", "worker.momentum=0.9", "partition={dirichlet: {alpha: 0.1}}"),
    "f3-dirichlet-server-momentum": (
        "f=3",
        "worker.momentum=0",
        "optimizer={name: sgd, lr: 0.1, momentum: 0.9, schedule: linear}",
        "partition={dirichlet: {alpha: 0.1}}",
    ),
    "f3-no-momentum": ("f=3", "worker.momentum=0", "optimizer.lr=0.3"),
}
GENERATIONS, SEEDS = 4, 2


@dataclass(frozen=True)
class Case:
    """A rule, and the settings in which it is attacked."""

    aggregator: str
    setting: str

    @property
    def name(self) -> str:
        return f"{self.aggregator}-{self.setting}"

    def arguments(self, generations: int = GENERATIONS, seeds: int = SEEDS) -> list[str]:
        """The arguments of `varangian redteam`, but for the folder."""
        base = BASE.relative_to(HERE.parent)
        extent = ["--generations", str(generations), "--seeds", str(seeds)]
        return [self.aggregator, *SETTINGS[self.setting], "--config", str(base), *extent]


@dataclass(frozen=True)
class Strongest:
    """The strongest attack of a kind in full trainings."""

    attack: Any
    """As `byzantine.attack` takes it; null is none."""
    accuracies: list[float]
    """At the end, one for each seed."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case."""

    aggregator: str
    setting: str
    settings: list[str]
    command: str
    policy: Strongest
    catalogue: Strongest
    clean: Strongest
    evaluations: int
    trainings: int
    search_seconds: float | None
    """None where the search was not carried out in one go."""
    confirmation_seconds: float | None


def cases() -> Iterator[Case]:
    for setting in SETTINGS:
        yield from (Case(rule, setting) for rule in RULES)


def search(case: Case, folder: Path) -> Outcome:
    """Carry a case out, and read its result.

    Raises:
        subprocess.CalledProcessError: the command fails.
    """
    result = folder / case.name / "redteam.json"
    if not result.exists():
        typed = [sys.executable, "-m", "varangian", "redteam", *case.arguments(), "--format", "plain"]
        subprocess.run([*typed, "--out", str(result.parent)], cwd=HERE.parent, check=True)
    return outcome_of(case, json.loads(result.read_text()))


def outcome_of(case: Case, found: Mapping[str, Any]) -> Outcome:
    """The outcome in a `redteam.json`."""
    of_kind: dict[str, list[dict[str, Any]]] = {"policy": [], "catalogue": [], "clean": []}
    for one in found["full"]:
        attack = one["attack"]
        known = attack is None or not isinstance(attack, dict) or "composite" not in attack
        of_kind["clean" if attack is None else "catalogue" if known else "policy"].append(one)
    strongest = {
        kind: min(trained, key=lambda one: (one["accuracy"], -one["loss"]))
        for kind, trained in of_kind.items()
    }
    seeds = len(strongest["clean"]["accuracies"])
    return Outcome(
        aggregator=case.aggregator,
        setting=case.setting,
        settings=[*SETTINGS[case.setting]],
        command=shlex.join(["varangian", "redteam", *case.arguments(found["generations"], seeds)]),
        **{kind: Strongest(one["attack"], one["accuracies"]) for kind, one in strongest.items()},
        evaluations=found["evaluations"],
        trainings=found["runs"],
        search_seconds=round(found["searched"], 1),
        confirmation_seconds=round(found["seconds"] - found["searched"], 1),
    )


def written(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The content of a results file, a case a line."""
    return "[\n" + ",\n".join(map(json.dumps, outcomes)) + "\n]\n"


def main(argv: Sequence[str] | None = None) -> None:
    known = {case.name: case for case in cases()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="by default all")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/redteam"), help="where the searches are kept"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help=f"the results file; by default {RESULTS}"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"there is no case {unknown[0]!r}. Known: {', '.join(known)}")
    if args.list:
        print("\n".join(known))
        return
    for name in args.cases or known:
        outcome = asdict(search(known[name], args.runs.absolute()))
        before = json.loads(args.json.read_text()) if args.json.exists() else []
        by_name = {f"{one['aggregator']}-{one['setting']}": one for one in before} | {name: outcome}
        args.json.write_text(written([by_name[each] for each in known if each in by_name]))
        print(json.dumps(outcome))


if __name__ == "__main__":
    main()
