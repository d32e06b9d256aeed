"""Rounds that are computed again from kept rows."""

import json
import shutil

import pytest

from varangian import state_file
from varangian.cli.main import main
from varangian.config import load
from varangian.launch import run
from varangian.launch.output.chain import Chain, beginning

FRAGMENTS = ("server.fragments=2", "worker.inner=adamw", "worker.local_steps=2", "optimizer=adam")
LATE = "delays={lognormal: {median: 0.05, most: 0.2}}"


def carried_out(tmp_path, *settings):
    usual = ("backend=simulate", "workers=5", "f=1", "rounds=4", "server.keep_rows=2", "data=synthetic")
    return run(load(None, [*usual, f"output={tmp_path}", *settings])).folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def folder(finished, tmp_path):
    """A copy to be tampered with."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def audited(capsys):
    def audit(folder):
        code = main(["audit", "--recompute", str(folder)])
        return code, capsys.readouterr().out

    return audit


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("optimizer=adam", "ema.reference_batch=40", "server.rows=bfloat16", "aggregator=bucketing+median"),
        ("participation=async", LATE),
        ("participation=asap", LATE, "aggregator=median"),
        ("participation.fedlaavg.participants=3",),
        (*FRAGMENTS, "aggregator=nnm+krum", "server.rows=bfloat16"),
        (*FRAGMENTS, "aggregator=median"),
    ],
)
def test_a_round_has_the_same_bits_again(tmp_path, audited, settings):
    code, said = audited(carried_out(tmp_path, *settings))
    assert (code, "2 rounds, 2 to 3: recomputed from kept rows, the same bits" in said) == (0, True)


def test_an_update_of_a_running_sum_is_left_out(tmp_path, audited):
    path = carried_out(
        tmp_path, "participation={fedlaavg: {participants: 3, form: delta}}", "aggregator=mean", "f=0"
    )
    code, said = audited(path)
    assert (code, "round 3 was updated from a running sum, and was not recomputed" in said) == (0, True)


def made_anew(folder, change):
    """The chain of a record, made again over changed records by whoever may write the whole folder."""
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    chain = Chain(beginning(*((folder / name).read_bytes() for name in ("config.yaml", "manifest.json"))))
    with (folder / "rounds.jsonl").open("w") as file:
        for record in records:
            del record["before"]
            change(record)
            file.write(chain.line(json.dumps(record)) + "\n")
    result = json.loads((folder / "result.json").read_text())
    result["record"]["digest"] = chain.head
    (folder / "result.json").write_text(json.dumps(result))


def test_a_weight_that_was_swapped_in_a_chain_made_anew_is_found(folder, audited):
    def swap(record):
        record["weights"] = dict(zip(record["weights"], [*record["weights"].values()][::-1], strict=True))

    made_anew(folder, swap)
    code, said = audited(folder)
    assert code == 1
    assert "rounds.jsonl, line 3 (round 2), has other weights than its kept rows give" in said


def test_parameters_of_another_round_are_found(folder, audited):
    def change(record):
        record["parameters"] = "00" if record["round"] == 1 else record["parameters"]

    made_anew(folder, change)
    code, said = audited(folder)
    assert code == 1
    assert "round-000002.safetensors begins with other parameters than line 2 (round 1) ended with" in said


def test_a_round_names_its_fragment_and_is_judged_by_all_of_them(tmp_path, audited):
    path = carried_out(tmp_path, *FRAGMENTS, "server.keep_rows=4", "server.fragments=3", "rounds=5")
    lines = (path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["fragment"] for line in lines] == [0, 1, 2, 0, 1]
    kept = path / "rows" / "round-000003.safetensors"
    found = state_file.read(kept)
    name = next(name for name in found.tensors if "earlier" in name and "2" in name)
    state_file.write(kept, found.plain, {**found.tensors, name: found.tensors[name] * 1.5})
    code, said = audited(path)
    assert code == 1
    assert "round-000003.safetensors begins with other inner products than the rows before it have" in said
    assert "3 rounds, 1 to 4: recomputed" in said


def test_rows_of_another_number_of_fragments_are_named(tmp_path, audited):
    path = carried_out(tmp_path, *FRAGMENTS)
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("fragments: 2", "fragments: 99"))
    code, said = audited(path)
    assert code == 1
    assert (
        "round-000002.safetensors is not of fragments as in config.yaml (`server.fragments` should be"
        in said
    )


def test_damaged_rows_are_named(folder, audited):
    path = folder / "rows" / "round-000003.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    code, said = audited(folder)
    assert (code, "round-000003.safetensors cannot be used: its tensor" in said) == (1, True)


def test_a_run_without_rows(folder, audited):
    shutil.rmtree(folder / "rows")
    code, said = audited(folder)
    assert (code, "no rows were kept: server.keep_rows=10" in said) == (0, True)
