"""The history checker is silent about what a machine does, and names every error that is planted."""

import json
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples
from tests.history import RecordingMachine, Rules, check, of_record

from varangian.server.participation.asynchronous import BufferSelection
from varangian.server.participation.sync import Everyone
from varangian.server.protocol.events import Committed, Fault, Offer, Push, Ready, Tick, Withdraw
from varangian.server.protocol.state import RunPolicy

NAMES = ("w00", "w01", "w02", "w03")
HONEST = NAMES[:3]
ROUNDS = 6
POLICY = RunPolicy(NAMES, ROUNDS, quorum=3, deadline=10.0, shortfall="wait", f=1, selection=Everyone())


def vector(worker, round):
    return f"{worker} {round}".encode()


def parameters(round):
    return f"model {round}"


class Recomputation:
    """Parameters that count the rounds."""

    def __init__(self, wrong=None):
        self.round, self.wrong = -1, wrong

    def commit(self, round, workers, faults):
        self.round += 1
        return parameters(self.round) if round != self.wrong else "another"

    def resume(self, round):
        self.round = round - 1


RULES = Rules(
    quorum=3,
    f=1,
    honest=HONEST,
    requires=lambda pushed, faulty: None if len(pushed) > 2 else "too few rows",
    reference={round: parameters(round) for round in range(ROUNDS)},
)


def played(again_from=4):
    """The log of a run: w03 is faulty in round 2, and the server dies in round 4, of None never."""
    machine, now = RecordingMachine(POLICY), 0.0
    machine.parameters = lambda: parameters(machine.state.round - 1)
    kept = {}
    while machine.state.round < ROUNDS:
        round = machine.state.round
        kept.setdefault(round, machine.dump())
        if round == 4 and again_from is not None:
            machine.handle(Offer("w00", 4, vector("w00", 4), now))
            machine.handle(Push("w00", 4, vector("w00", 4), now))
            machine.restore(kept[again_from], connected=False)
            again_from = None
            continue
        if round == 2:
            machine.handle(Fault("w03", 2, "not finite", now))
        for name in NAMES if round != 2 else HONEST:
            machine.handle(Offer(name, round, vector(name, round), now))
            machine.handle(Push(name, round, vector(name, round), now))
        machine.handle(Offer("w01", round + 1, b"x", now))  # refused
        machine.handle(Committed(round, now))
        now += 1.0
    return machine.recorder.events


GOOD = played()


def commit(log, round, which=-1):
    return [event for event in log if event["event"] == "commit" and event["round"] == round][which]


@pytest.mark.parametrize("again_from", [None, 2, 3, 4])
def test_what_a_machine_does_is_in_order(again_from):
    log = played(again_from)
    assert check(log, Rules(**{**vars(RULES), "recomputed": Recomputation()})) == []
    assert check(json.loads(json.dumps(log)), RULES) == []
    commits = [event["round"] for event in log if event["event"] == "commit"]
    assert commits == ([*range(6)] if again_from is None else [*range(4), *range(again_from, 6)])
    assert [event["reason"] for event in log if event["event"] == "reject"][:1] == ["FUTURE"]


def test_vectors_of_earlier_models_and_those_that_wait_over_a_crash_are_in_order():
    policy = RunPolicy(NAMES, ROUNDS, 2, 10.0, "wait", 1, selection=BufferSelection(size=2, tau=3))
    machine = RecordingMachine(policy)
    for name in NAMES:
        machine.handle(Ready(name, 0, 0.0))
    for name in ("w00", "w01", "w02"):
        machine.handle(Offer(name, 0, vector(name, 0), 1.0))
        machine.handle(Push(name, 0, vector(name, 0), 1.0))
    machine.handle(Withdraw("w02", "revoked", 1.0))
    machine.handle(Committed(0, 2.0))
    machine.handle(Offer("w03", 0, vector("w03", 0), 2.0))
    machine.handle(Push("w03", 0, vector("w03", 0), 2.0))
    machine.restore(machine.dump(), connected=False)
    machine.handle(Ready("w00", 1, 3.0))
    machine.handle(Offer("w00", 1, vector("w00", 1), 4.0))
    machine.handle(Push("w00", 1, vector("w00", 1), 4.0))
    machine.handle(Tick(5.0))
    machine.handle(Committed(1, 5.0))
    log = machine.recorder.events
    assert commit(log, 1)["workers"] == {"w00": 1, "w03": 0}
    assert check(log, Rules(quorum=2, f=1)) == []


def planted(change):
    log = deepcopy(GOOD)
    return check(change(log) or log, RULES)


def replaced(log, kind, number, **fields):
    next(event for event in log if (event["event"], event.get("round")) == (kind, number)).update(fields)


def without(log, kind, round=None, worker=None):
    gone = [
        event
        for event in log
        if event["event"] == kind
        and round in (None, event.get("round"))
        and worker in (None, event.get("worker"))
    ]
    assert gone
    return [event for event in log if event is not gone[0]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda log: without(log, "commit", 1),
            "round 2 was committed where round 1 follows",
        ),
        (
            lambda log: [*log, commit(log, 5)],
            "round 5 uses the vector of w00 for round 5, which round 5 has used",
        ),
        (
            lambda log: replaced(log, "open", 3, round=4),
            "round 4 was opened where round 3 follows",
        ),
        (
            lambda log: replaced(log, "resume", 4, round=5),
            "the run went on from round 5 where round 4 follows",
        ),
        (
            lambda log: without(log, "resume"),
            "the vector of w00 for round 4 was accepted although one was there",
        ),
        (
            lambda log: commit(log, 3)["workers"].update(w01=2),
            "round 3 uses the vector of w01 for round 2, which round 2 has used",
        ),
        (
            lambda log: commit(log, 3)["workers"].update(w01=4),
            "round 3 uses the vector of w01 for round 4, which is to come",
        ),
        (
            lambda log: without(log, "accept", 3, "w02"),
            "round 3 uses the vector of w02 for round 3, which was not accepted",
        ),
        (
            lambda log: commit(log, 3)["digests"].update(w02="00"),
            f"round 3 uses the vector of w02 for round 3 with digest 00; accepted was {b'w02 3'.hex()}",
        ),
        (
            lambda log: [commit(log, 3)["workers"].pop(name) for name in ("w00", "w01")] and None,
            "round 3 was committed with 2 vectors and 0 faults, below the quorum of 3",
        ),
        (
            lambda log: commit(log, 2)["workers"].pop("w01") and None,
            "round 2 was committed although the rule promises nothing: too few rows",
        ),
        (
            lambda log: commit(log, 3)["faults"].append("w03"),
            "round 3 counts the vectors of faulty workers: w03",
        ),
        (
            lambda log: commit(log, 2)["faults"].append("w00"),
            "round 2 spent 2 faults where f = 1: w00, w03",
        ),
        (
            lambda log: replaced(log, "fault", 2, worker="w01"),
            "w01 is honest and was proven faulty in round 2: not finite",
        ),
        (
            lambda log: replaced(log, "commit", 2, faults=["w01"]),
            "round 2 names honest workers as faulty: w01",
        ),
        (
            lambda log: replaced(log, "commit", 2, weights={"w00": 1.0, "w03": 0.0}),
            "round 2 has weights of workers without a vector: w03",
        ),
        (
            lambda log: commit(log, 5).update(parameters="other"),
            "round 5 ended with parameters other, without interruption with model 5",
        ),
        (
            lambda log: replaced(log, "resume", 4, held={"w01": [3, "0a"]}),
            "the run went on with a vector of w01 for round 3 that nobody accepted",
        ),
    ],
)
def test_a_planted_error_is_named(change, sentence):
    assert sentence in planted(change)


def test_a_round_that_is_done_twice_has_the_same_parameters():
    log = played(again_from=2)
    commit(log, 3).update(parameters="other")
    rules = Rules(3, 1)
    assert check(log, rules) == ["round 3 was done twice from the same vectors, with model 3 and other"]


def test_parameters_are_computed_again():
    (problem,) = check(GOOD, Rules(3, 1, recomputed=Recomputation(wrong=4)))
    assert problem == "round 4 ended with parameters model 4; computed again they are another"


def test_members_may_change_at_a_border():
    log = deepcopy(GOOD)
    log.insert(log.index(commit(log, 0)) + 1, {"event": "members", "quorum": 5, "f": 0})
    found = check(log, Rules(3, 1))
    assert "round 1 was committed with 4 vectors and 0 faults, below the quorum of 5" in found
    assert not any(sentence.startswith("round 0") for sentence in found)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(["accept", "commit"]))
@settings(max_examples=examples(100), deadline=None)
def test_no_event_that_matters_can_be_left_out_or_repeated(place, kind):
    """Vectors that were lost with the first server matter to nobody, and a log may end a round early."""
    event = GOOD[place]
    if event["event"] != kind or event is GOOD[lost()]:
        return
    assert event is GOOD[-1] or check(GOOD[:place] + GOOD[place + 1 :], RULES)
    assert check([*GOOD[: place + 1], event, *GOOD[place + 1 :]], RULES)


def lost():
    """The place of the vector that the server had when it died."""
    return next(i for i, event in enumerate(GOOD) if event["event"] == "resume") - 1


RECORD = {"skipped": None, "weights": {"w00": 0.5, "w01": 0.5}, "ages": None, "dropped": {}}


def test_the_record_of_a_run_is_a_history(tmp_path):
    lines = [
        {**RECORD, "round": 0, "parameters": "a"},
        {
            **RECORD,
            "round": 1,
            "parameters": "b",
            "dropped": {"w01": "x"},
            "weights": {"w00": 1.0},
            "pushes": {"w00": "0a"},
        },
        {**RECORD, "round": 2, "skipped": "too few"},
        {**RECORD, "round": 1, "parameters": "c", "resumed": {"round": 1, "epoch": 1}, "weights": None},
        {**RECORD, "round": 2, "membership": {"quorum": 3}},
        {**RECORD, "round": 4, "ages": {"w00": 1}, "pushes": {"w00": "0b"}},
    ]
    path = tmp_path / "rounds.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = [*of_record(path)]
    assert [event["event"] for event in log] == [
        *("commit", "commit", "skip", "resume", "commit", "members", "commit", "commit")
    ]
    assert (log[-1]["workers"], log[1]["faults"]) == ({"w00": 3}, ["w01"])
    assert check(log, Rules(quorum=1, f=1, reference={1: "b"})) == [
        "round 1 ended with parameters c, without interruption with b",
        "round 2 was committed with 2 vectors and 0 faults, below the quorum of 3",
        "round 4 was committed where round 3 follows",
        "round 4 was committed with 1 vectors and 0 faults, below the quorum of 3",
    ]
