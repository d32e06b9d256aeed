"""The arguments of the commands for experiments. Nothing heavy is imported here."""

from __future__ import annotations

import argparse

from varangian.cli.arguments.common import FORK_SERVER, add_format, count
from varangian.files import expanded


def add_sweep(parser: argparse.ArgumentParser) -> None:
    # Every run has a process, also in a simulation.
    parser.set_defaults(prepare=FORK_SERVER, forks=True)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="GRID [key=value ...]",
        help="a YAML file with a grid, and settings of all its runs",
    )
    parser.add_argument(
        "--from-byzfl",
        type=expanded,
        metavar="CONFIG",
        help="a JSON file of ByzFL in place of the grid; says what of it has no counterpart",
    )
    parser.add_argument(
        "--write", type=expanded, metavar="GRID", help="write the grid of --from-byzfl here; run nothing"
    )
    parser.add_argument(
        "--jobs",
        type=count,
        metavar="N",
        help="runs at the same time; by default as many as cores, or as the engine starts",
    )
    _engines(parser)
    parser.add_argument("--seeds", type=count, metavar="N", help="run every point with the seeds 1 to N")
    parser.add_argument(
        "--output", type=expanded, metavar="DIR", help="the folder of run folders; short for output=..."
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the points and estimate the time; run nothing"
    )
    parser.add_argument("--yes", action="store_true", help="run more than 10 000 points")
    add_format(parser)


def _engines(parser: argparse.ArgumentParser) -> None:
    """Who carries the runs of a sweep out, if it is not this machine."""
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--slurm",
        dest="engine",
        action="store_const",
        const="slurm",
        help="hand the runs to Slurm, as job arrays; the output folder is one that all nodes share",
    )
    engine.add_argument(
        "--kubernetes",
        dest="engine",
        action="store_const",
        const="kubernetes",
        help="hand the runs to Kubernetes, as Indexed Jobs; the output folder is on a volume of theirs",
    )
    engine.add_argument(
        "--ray",
        dest="engine",
        action="store_const",
        const="ray",
        help="hand the runs to the Ray cluster of RAY_ADDRESS, or to one on this machine",
    )
    parser.add_argument(
        "--slurm-options",
        metavar="OPTIONS",
        help="more options for sbatch in one argument: --slurm-options='--partition=short --time=30'",
    )
    parser.add_argument(
        "--kubernetes-options",
        metavar="OPTIONS",
        help="image and claim of the pods, and more, in one argument: "
        "--kubernetes-options='image=NAME claim=runs:/mnt/runs cpu=2 memory=4Gi'",
    )
    parser.add_argument(
        "--per-task",
        type=count,
        metavar="N",
        help="runs that a task of the engine carries out; by default 1",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="return when the runs are handed over; the same command again waits for them",
    )


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="the folder of a run, a folder of such folders, the .sweep.json of a sweep; or the record of "
        "ranks that varangian.torch writes, as steps.jsonl",
    )
    parser.add_argument(
        "only",  # `runs` takes all of them: the command tells them by their `=`
        nargs="*",
        metavar="key=value",
        help="settings that a run must have to count, as f=6 or byzantine.attack=alie; "
        "one that is there twice may have either value",
    )
    parser.add_argument(
        "-o", "--out", type=expanded, default="report.html", metavar="FILE", help="by default report.html"
    )
    parser.add_argument(
        "--figures", type=expanded, metavar="DIR", help="write figures as PDF and PNG, and tables, here"
    )
    parser.add_argument(
        "--follow", action="store_true", help="serve the page on 127.0.0.1 and refresh it while runs go on"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def add_advise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="[CONFIG] [key=value ...]",
        help="a YAML file, and settings on top of it; what is not written counts as not known",
    )
    parser.add_argument(
        "-n", "--workers", type=count, metavar="N", help="short for workers=N; by default 15"
    )
    parser.add_argument(
        "-f", type=int, metavar="F", help="workers that may attack; short for f=F, by default 3"
    )
    parser.add_argument(
        "--declared", type=int, metavar="F", help="the f that the server would be told, if another"
    )
    parser.add_argument(
        "--partition",
        metavar="NAME",
        help="how data differ between workers, as iid or dirichlet; short for partition=NAME",
    )
    parser.add_argument(
        "--alpha", type=float, metavar="A", help="that of dirichlet; smaller is more different"
    )
    parser.add_argument(
        "--momentum", type=float, metavar="M", help="momentum of workers; short for worker.momentum=M"
    )
    parser.add_argument(
        "--threat",
        choices=("any", "labels"),
        default="any",
        help="any vectors, by default; or wrong labels alone, with honest programs",
    )
    parser.add_argument(
        "-d", "--parameters", type=count, metavar="D", help="numbers in the model, for the cost"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--ca",
        type=expanded,
        metavar="FILE",
        help="the authority that should have certified the server, as ca.pem of a bundle; then every line "
        "should be signed",
    )
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="compute rounds again from the rows that server.keep_rows kept; runs your own code that the "
        "configuration names",
    )
    parser.add_argument(
        "--against",
        type=expanded,
        metavar="RUN",
        help="another run, of which every round should have the same bits; says which is the first that "
        "differs, and whether in the vectors of workers or at the server",
    )


def add_redteam(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(prepare=FORK_SERVER, forks=True)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="AGGREGATOR [key=value ...]",
        help="the aggregator to attack, as krum, nnm+median or module:Class, and settings of all trainings",
    )
    parser.add_argument(
        "--config", type=expanded, dest="file", metavar="FILE", help="a YAML file with other settings"
    )
    parser.add_argument(
        "--generations", type=count, default=12, metavar="N", help="of 32 policies each; by default 12"
    )
    parser.add_argument(
        "--budget",
        type=seconds,
        metavar="S",
        help="begin no generation after 40 %% of S seconds, no short training after 75 %%, and no full one "
        "after S; what has begun ends, and the strongest two attacks and a run without one are trained in "
        "full whatever the time",
    )
    parser.add_argument("--seed", type=count, default=1, metavar="N", help="of the search; by default 1")
    parser.add_argument(
        "--seeds", type=count, default=3, metavar="N", help="full trainings under each attack; by default 3"
    )
    parser.add_argument(
        "--jobs", type=count, metavar="N", help="trainings at the same time; by default as many as cores"
    )
    parser.add_argument(
        "--out", type=expanded, metavar="DIR", help="the folder of all files; by default one below output"
    )
    add_format(parser)


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"should be a number of seconds above 0. Found {text!r}.")
    return found
