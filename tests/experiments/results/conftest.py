"""Run folders with numbers of the test's own, written as runs write them."""

import copy
import json
import random

import pytest

from varangian.config import load
from varangian.config.yaml_text import dump
from varangian.launch import RunResult
from varangian.launch.output.run_folder import RunFolder
from varangian.server.observability.record import RoundRecord

BASE = load(None, ["data=digits", "workers=10", "f=2", "rounds=4", "aggregator=krum"]).resolved()
ATTACKS = {"none": None, "alie": {"alie": {"z": None}}, "sign_flip": {"sign_flip": {"scale": 1.0}}}
RULES = {"krum": {"krum": {"f": 2, "select": 1}}, "median": {"median": {}}}


def settings(**changes):
    """The resolved settings of a run; `__` stands for the dot, an attack comes with its count."""
    config = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = config
        for key in parents:
            place = place[key]
        place[last] = copy.deepcopy(value)
    if "byzantine__attack" in changes and changes["byzantine__attack"] is not None:
        config["byzantine"]["count"] = 2
    return config


def record(round, **fields):
    return RoundRecord(**{"round": round, "dropped": {}, "missing": (), "seconds": {}} | fields)


@pytest.fixture(scope="session")
def write_run():
    """Write a run folder: its records, and its end unless it has none."""

    def write(folder, config, records, *, version="0.1.0", ended="finished", error=None, **result):
        folder.mkdir(parents=True)
        documents = {
            "config.yaml": dump(config).encode(),
            "manifest.json": json.dumps({"varangian": version, "seed": config["seed"]}).encode(),
        }
        run = RunFolder(folder, documents, metrics=result.pop("names", ("accuracy",)))
        for one in records:
            run.observe(one)
        last = records[-1] if records else record(0)
        if ended:
            end = {
                "accuracy": last.accuracy,
                "loss": last.loss,
                "train_loss": last.train_loss,
                "metrics": last.metrics,
                "digest": "",
                "rounds": len(records),
                "seconds": 1.0,
                "reason": f"it {ended}",
                "outcome": ended,
            }
            run.finish(RunResult(**end | result), {})
        run.close()
        if error:
            (folder / "error.json").write_text(json.dumps({"error": error, "kind": "ValueError"}))
        return folder

    return write


def learning(accuracies, *, lr=0.5, norm=2.0):
    """Records of a run with these accuracies, one in every second round."""
    return [
        record(
            i,
            lr=lr,
            update_norm=norm,
            loss=1 - accuracies[i // 2] if i % 2 else None,
            accuracy=accuracies[i // 2] if i % 2 else None,
            train_loss=0.5 - accuracies[i // 2] / 2 if i % 2 else None,
        )
        for i in range(2 * len(accuracies))
    ]


@pytest.fixture(scope="session")
def compared(tmp_path_factory, write_run):
    """Two rules, two attacks and none, three seeds: the folder, and accuracies by rule, attack, seed."""
    folder, numbers, draw = tmp_path_factory.mktemp("compared"), {}, random.Random(1)
    for rule, aggregator in RULES.items():
        for attack, spec in ATTACKS.items():
            for seed in (1, 2, 10):
                accuracies = [round(draw.random(), 3), round(draw.random(), 3)]
                numbers[rule, attack, seed] = accuracies
                config = settings(aggregator=aggregator, byzantine__attack=spec, seed=seed)
                norm = 1.0 if rule == "median" else 2.0
                write_run(folder / f"{rule}-{attack}-{seed}", config, learning(accuracies, norm=norm))
    return folder, numbers
