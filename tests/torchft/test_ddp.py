"""`varangian.torchft`: real managers with a real lighthouse, a replica in each process."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
from tests.extent import patience

pytest.importorskip("torchft", reason="torchft is not installed (pip install 'varangian[torchft]')")

PROGRAM = pathlib.Path(__file__).with_name("replica.py")
ROOT = PROGRAM.parents[2]
REPLICAS = 4


def trained(spec, fault, steps=4, with_log=False):
    """What each replica says at its end, and the log of each on request."""
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=REPLICAS, join_timeout_ms=60_000)
    programs = list[subprocess.Popen[str]]()
    try:
        address = lighthouse.address().replace(os.uname().nodename, "127.0.0.1")
        words = [REPLICAS, address, steps, spec, fault]
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        programs = [
            subprocess.Popen(
                [sys.executable, PROGRAM, str(place), *map(str, words)],
                env=os.environ | {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for place in range(REPLICAS)
        ]
        found = [program.communicate(timeout=patience(300)) for program in programs]
    finally:
        for program in programs:
            program.kill()
        lighthouse.shutdown()
    assert [program.returncode for program in programs] == [0] * REPLICAS, found[0][1][-3000:]
    answers = [json.loads(out.splitlines()[-1]) for out, _ in found]
    return (answers, [log for _, log in found]) if with_log else answers


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("spec", "fault"), [("nnm+trimmed_mean", "scaled"), ("median", "nan")])
def test_replicas_train_though_one_is_wrong(spec, fault):
    answers = trained(spec, fault)
    assert {(answer["kept"], answer["tries"]) for answer in answers} == {(4, 4)}
    assert len({answer["sum"] for answer in answers}) == 1
    assert math.isfinite(answers[0]["sum"])
    for answer in answers:
        wrong = answer["dropped" if fault == "nan" else "far"]
        assert all(len(ranks) == 1 for ranks in wrong)
        assert not any(answer["accused"])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_with_more_faults_than_f_is_discarded():
    for answer in trained("median", "two"):
        assert answer["kept"] == 0
        assert answer["tries"] == 12


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_step_in_which_an_audit_finds_a_replica_is_discarded():
    for answer in trained("nnm+trimmed_mean", "lies", steps=2):
        assert answer["kept"] == 0
        assert len({*map(tuple, answer["accused"])}) == 1
        assert all(len(ranks) == 1 for ranks in answer["accused"])


def test_weights_by_place_in_a_quorum_are_refused():
    from torch import nn

    from varangian.torchft import DistributedDataParallel

    with pytest.raises(ValueError, match=r"weights: should be left out with torchft. Found \[1, 2, 3\]"):
        DistributedDataParallel(None, nn.Linear(1, 1), weights=[1, 2, 3])
    with pytest.raises(ValueError, match=r"weight: should be a positive number.* Found '3'\."):
        DistributedDataParallel(None, nn.Linear(1, 1), weight="3")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_each_replica_says_what_it_weighs():
    """Of weights 1, 2, 2 and 2 the mean has shares of a seventh, in the order of the quorum."""
    for answer in trained("mean:0", "weights", steps=2):
        assert answer["kept"] == 2
        assert sorted(answer["weights"][-1]) == pytest.approx([1 / 7, 2 / 7, 2 / 7, 2 / 7])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_replica_that_claims_half_of_the_weight_is_named_and_changes_nothing():
    answers, said = trained("trimmed_mean", "heavy", steps=1, with_log=True)
    assert {(answer["kept"], answer["tries"]) for answer in answers} == {(0, 3)}
    for log in said:
        assert re.search(r"the f = 1 heaviest may have 0.6. The heaviest is replica0\S*, of 9\.", log), log
