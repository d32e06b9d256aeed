"""The first difference of two runs that should have the same bits."""

import json
import shutil

import pytest

from varangian.cli.main import main
from varangian.config import load
from varangian.experiments.audit.difference import circumstances, first_difference
from varangian.experiments.results.run import Run
from varangian.launch import run


def finished(output, *settings):
    """The folder of a run."""
    given = ["backend=simulate", "workers=3", "f=0", "rounds=4", f"output={output}", *settings]
    return run(load(None, given)).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def other(folder, tmp_path):
    """A copy whose records are changed by a function of a round and its record."""

    def changed(change):
        copy = shutil.copytree(folder, tmp_path / "other")
        records = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
        kept = [record for record in records if change(record["round"], record) is not False]
        (copy / "rounds.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in kept))
        return Run(copy)

    return changed


def test_the_same_settings_have_the_same_bits(folder, tmp_path):
    again = finished(tmp_path)
    assert first_difference(Run(folder), Run(again)) is None
    assert [*circumstances(Run(folder), Run(again))] == []


def test_the_vector_of_a_worker(folder, other):
    def change(round, record):
        if round >= 2:
            record["pushes"]["w01"] = record["parameters"] = "0" * 32

    said = first_difference(Run(folder), other(change))
    assert said.startswith(
        "round 2 is the first that differs: from the same parameters the vectors of w01 "
    )
    assert "look at workers" in said


def test_the_first_vectors_come_from_the_beginning(folder, tmp_path):
    another = Run(finished(tmp_path, "seed=2"))
    said = first_difference(Run(folder), another)
    assert said.startswith(
        "round 0 is the first that differs: from the beginning the vectors of w00, w01, w02"
    )
    assert "seed: 1 here, 2 there" in circumstances(Run(folder), another)


@pytest.mark.parametrize(
    ("field", "what"), [("parameters", "and the step at the server"), ("weights", "and the rule (weights)")]
)
def test_the_server(field, what, folder, other):
    def change(round, record):
        if round == 1:
            record["parameters"] = "0" * 32
            record[field] = None

    said = first_difference(Run(folder), other(change))
    assert said.startswith("round 1 is the first that differs: the same vectors came, ")
    assert what in said


def test_a_worker_that_did_not_count(folder, other):
    def change(round, record):
        if round == 3:
            del record["pushes"]["w02"]
            record["because"] = "the deadline of 60 s is over"

    missing = other(change)
    said = "round 3 is the first that differs: w02 did not count"
    assert first_difference(Run(folder), missing) == f"{said} there (the deadline of 60 s is over)"
    assert first_difference(missing, Run(folder)) == f"{said} here (the deadline of 60 s is over)"


def test_a_run_that_was_stopped(folder, other):
    short = other(lambda round, record: round < 2)
    result = json.loads((short.folder / "result.json").read_text())
    stopped = result | {"rounds": 2, "outcome": "interrupted", "reason": "stopped by SIGTERM"}
    (short.folder / "result.json").write_text(json.dumps(stopped))
    said = "all rounds before 2 have the same bits, and {} ends there (stopped by SIGTERM)"
    assert first_difference(Run(folder), short) == said.format("the other one")
    assert first_difference(short, Run(folder)) == said.format("this run")


def test_records_without_digests(folder, other):
    blind = other(lambda round, record: record.update(pushes=None, parameters=None))
    first, second = (shutil.copytree(blind.folder, blind.folder.with_name(name)) for name in "ab")
    assert first_difference(Run(first), Run(second)) is None
    result = json.loads((second / "result.json").read_text())
    (second / "result.json").write_text(json.dumps(result | {"digest": "0"}))
    assert first_difference(Run(first), Run(second)).startswith("the final parameters differ")


def test_other_kernels_are_a_circumstance(folder, other):
    another = other(lambda round, record: None)
    manifest = json.loads((another.folder / "manifest.json").read_text())
    (another.folder / "manifest.json").write_text(json.dumps(manifest | {"kernels": "native v0"}))
    (said,) = circumstances(Run(folder), another)
    assert said == f"kernels: {manifest['kernels']} here, native v0 there"


def test_the_command(folder, other, tmp_path, capsys):
    same = shutil.copytree(folder, tmp_path / "same")
    assert main(["audit", str(folder), "--against", str(same)]) == 0
    assert f"all rounds have the same bits as those of {same}" in capsys.readouterr().out
    changed = other(lambda round, record: record.update(parameters="0" * 32) if round else None)
    assert main(["audit", str(folder), "--against", str(changed.folder)]) == 1
    assert f"PROBLEM: not the bits of {changed.folder}: round 1 is the first" in capsys.readouterr().out
    assert main(["audit", str(folder), "--against", str(tmp_path / "nothing")]) == 1
    assert "--against" in capsys.readouterr().err
