"""The committed evidence: rules under attacks, each table rebuilt by one command.

    python benchmarks/evidence.py --list
    python benchmarks/evidence.py digits
    python benchmarks/evidence.py cifar10 --cifar10 DIR
    python benchmarks/evidence.py digits screening --read --runs DIR

A table is the sweep of the grid benchmarks/evidence/TABLE.yaml. Its runs lie in `--runs`; typed again, the
command does what is missing. What comes of them is written to benchmarks/results/evidence/TABLE.json, which
the page docs/reference/evidence.md is printed from, and to the summary for `varangian advise`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from evidence.advice import advice, write_advice
from evidence.catalogue import ADVICE, ROOT, TABLES, Table, table
from evidence.markdown import table_of_worst_cases
from evidence.results import stored, write
from evidence.summary import summarise

from varangian.config.overrides import from_command_line
from varangian.experiments.results.run import ResultsError
from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.pace import duration, pace_of_finished
from varangian.experiments.sweep.plan import make_plan
from varangian.experiments.sweep.processes.folders import RunFolders
from varangian.registry import ConfigError


def main() -> int:
    args = _arguments()
    if args.list:
        for one in TABLES:
            print(_line(one, args), flush=True)
        return 0
    os.chdir(ROOT)  # where `benchmarks.evidence.byzfl_rules` is found
    status = 0
    for one in map(table, args.tables):
        if reason := _lacking(one, args):
            print(f"{one.name}: left out: {reason}", flush=True)
            continue
        if not args.read:
            status = max(status, _sweep(one, args))
        try:
            content = summarise(one, args.runs)
        except ResultsError as error:
            print(f"{one.name}: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        write(one.results, content)
        print(f"\n{one.results.relative_to(ROOT)}: {content['runs']} runs\n")
        print(f"{table_of_worst_cases(content)}\n", flush=True)
    write_advice(ADVICE, advice(stored(TABLES)))
    return status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [one.name for one in TABLES]
    parser.add_argument("tables", nargs="*", metavar="TABLE", choices=[[], *names], help=", ".join(names))
    parser.add_argument(
        "--list", action="store_true", help="list the tables with their runs, and run nothing"
    )
    parser.add_argument(
        "--read", action="store_true", help="write the results of the runs that are there; run nothing"
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at the same time (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, help="seeds, in place of those of the grid")
    runs = ROOT / "runs" / "evidence"
    parser.add_argument(
        "--runs", type=Path, default=runs, help="the folder of run folders (default %(default)s)"
    )
    cifar10 = os.environ.get("VARANGIAN_CIFAR10")
    help = "the folder of CIFAR-10's parquet files, by default that of the variable VARANGIAN_CIFAR10"
    parser.add_argument("--cifar10", type=Path, default=cifar10, help=help)
    args = parser.parse_args()
    if not args.tables and not args.list:
        parser.error("name a TABLE, or --list")
    args.runs = args.runs.absolute()
    return args


def _sweep(one: Table, args: argparse.Namespace) -> int:
    words = [
        sys.executable,
        "-m",
        "varangian",
        "sweep",
        str(one.grid.relative_to(ROOT)),
        *_settings(one, args),
    ]
    words += ["--output", str(args.runs), "--jobs", str(args.jobs), "--yes"]
    return subprocess.run(words, check=False).returncode


def _settings(one: Table, args: argparse.Namespace) -> list[str]:
    """The settings and options that are given for all runs of a table."""
    seeds = [] if args.seeds is None else ["--seeds", str(args.seeds)]
    data = [f"data={{cifar10: {{path: {args.cifar10.absolute()}}}}}"] if one.needs == "cifar10" else []
    return [*data, *seeds]


def _lacking(one: Table, args: argparse.Namespace) -> str:
    """The reason why a table cannot be made here; empty if it can."""
    if one.needs == "cifar10" and args.cifar10 is None:
        return "it needs CIFAR-10: --cifar10 DIR"
    if one.needs == "byzfl" and find_spec("byzfl") is None:
        return "it needs the library byzfl: pip install --no-deps byzfl scipy"
    return ""


def _line(one: Table, args: argparse.Namespace) -> str:
    """`digits      12 of 900 runs done, 40 min left with 2 jobs`."""
    if reason := _lacking(one, args):
        return f"{one.name:16} {reason}"
    os.chdir(ROOT)
    try:
        settings = [word for word in _settings(one, args) if word.startswith("data=")]
        grid = GridFile.read(one.grid, from_command_line([*settings, f"output={args.runs}"]))
        grid = grid if args.seeds is None else grid.with_seeds(range(1, args.seeds + 1))
        plan = make_plan(grid, most=None)
    except ConfigError as error:
        return f"{one.name:16} {error}"
    folders = RunFolders(plan.output)
    missing = [point for point in plan.points if not folders.is_complete(point.id)]
    seconds = pace_of_finished(plan).seconds_for(sum(p.config.rounds for p in missing), args.jobs)
    left = "" if not missing else f", {duration(seconds)} left with {args.jobs} jobs"
    return f"{one.name:16} {len(plan.points) - len(missing)} of {len(plan.points)} runs done{left}"


if __name__ == "__main__":
    sys.exit(main())
