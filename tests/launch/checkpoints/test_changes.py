"""Changes of settings that a run may go on with, and those that it may not."""

import pytest

from varangian.config import load
from varangian.launch.checkpoints.changes import ALLOWED, changes, learning_rates, problems, refused

SMALL = ("data=synthetic", "model=softmax", "workers=5", "f=1", "rounds=20")


def config(*settings):
    return load(None, [*SMALL, *settings])


def found(before=(), after=()):
    old, new = config(*before), config(*before, *after)
    differences = changes(old, new)
    return differences, refused(differences, new)


@pytest.mark.parametrize(
    "setting",
    [
        *("output=elsewhere", "rounds=30", "metrics=[accuracy, class_accuracy]", "evaluate.every=3"),
        *("server.host=localhost", "server.port=5000", "server.data_port=null", "server.heartbeat=alive"),
        *("server.tls=true", "server.deadline=30.0", "server.deadline=auto", "server.wait_factor=2.0"),
        *("server.wait_floor=1.0", "server.wait_rounds=null", "server.absent_after=60.0"),
        *("server.checkpoint.every=7", "server.checkpoint=null", "server.keep_rows=3"),
        *("worker.patience=60.0", "worker.state=null", "worker.per_process=2"),
    ],
)
def test_what_no_number_of_a_round_depends_on_may_change(setting):
    differences, wrong = found(after=[setting])
    assert differences
    assert not wrong


@pytest.mark.parametrize(
    ("setting", "path", "before", "after"),
    [
        ("seed=2", "seed", 1, 2),
        ("workers=6", "workers", 5, 6),
        ("f=0", "f", 1, 0),
        ("optimizer.lr=0.3", "optimizer.lr", 1.0, 0.3),
        ("worker.momentum=0", "worker.momentum", 0.9, 0.0),
        ("backend=simulate", "backend", "processes", "simulate"),
        ("server.threads=2", "server.threads", 1, 2),
        ("evaluate.validation=0.1", "evaluate.validation", None, 0.1),
    ],
)
def test_another_number_of_a_round_is_refused_with_both_values(setting, path, before, after):
    _, (wrong,) = found(after=[setting])
    assert (wrong.path, wrong.before, wrong.after) == (path, before, after)
    (problem,) = problems([wrong])
    assert f"should be as in the run that goes on, {before!r}. Found {after!r}." in str(problem)
    assert ("--force" in str(problem)) == (path not in ("workers", "f"))


def test_all_problems_are_told_at_once_and_others_are_not_among_them():
    differences, wrong = found(after=["seed=2", "aggregator=krum", "rounds=30"])
    assert [change.path for change in wrong] == ["seed", "aggregator"]
    assert len(differences) == 3
    assert [problem.path for problem in problems(wrong)] == ["seed", "aggregator"]


def test_another_name_is_one_change_of_all_below_it():
    (change,), _ = found(["optimizer=sgd"], ["optimizer=adam"])
    assert (change.path, change.before["name"], change.after["name"]) == ("optimizer", "sgd", "adam")


def test_attackers_of_a_process_stay_together():
    attacked = ["byzantine.count=1", "byzantine.attack=sign_flip"]
    _, (wrong,) = found(attacked, ["worker.per_process=2"])
    assert wrong.path == "worker.per_process"


def test_rounds_may_change_unless_rates_of_rounds_that_are_done_depend_on_them():
    constant, more = config(), config("rounds=40")
    assert learning_rates(constant, more, 10) is None
    cosine = config("optimizer.schedule=cosine")
    longer = config("optimizer.schedule=cosine", "rounds=40")
    assert learning_rates(cosine, cosine, 10) is None
    assert learning_rates(cosine, longer, 0) is None
    problem = str(learning_rates(cosine, longer, 10))
    assert "rounds 0 to 9 had the learning rates of rounds=20, and rounds=40 has others" in problem
    assert "cosine" in problem
    inner = ("worker.inner={adamw: {schedule: linear}}", "worker.local_steps=3")
    assert learning_rates(config(*inner), config(*inner, "rounds=40"), 0) is None
    problem = str(learning_rates(config(*inner), config(*inner, "rounds=40"), 10))
    assert "its schedule linear depends on it: rounds 0 to 9 had the learning rates of rounds=20" in problem


def test_what_is_allowed_is_there():
    settings = config().resolved()
    for path in ALLOWED:
        value = settings
        for name in path.split("."):
            value = value[name]
