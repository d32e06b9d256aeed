"""Tuning: one value for all attacks, by its worst case on a validation split."""

import pytest

from varangian.experiments.sweep.progress import Outcome
from varangian.experiments.sweep.tune import choose

LRS = [0.1, 0.5]
SCORES = {
    ("median", 0.1, None): 0.99,
    ("median", 0.1, "sign_flip"): 0.9,
    ("median", 0.1, "ipm"): 0.2,
    ("median", 0.5, None): 0.8,
    ("median", 0.5, "sign_flip"): 0.7,
    ("median", 0.5, "ipm"): 0.6,
    ("mean", 0.1, None): 0.1,
    ("mean", 0.1, "sign_flip"): 0.3,
    ("mean", 0.1, "ipm"): 0.3,
    ("mean", 0.5, None): 0.9,
    ("mean", 0.5, "sign_flip"): 0.3,
    ("mean", 0.5, "ipm"): 0.1,
}


@pytest.fixture
def outcomes(planned):
    """The outcomes of two rules and two learning rates: seeds differ by 0.02 around the score."""

    def outcomes(score, rules=("median", "mean"), attacks=(None, "sign_flip", "ipm")):
        plan = planned(
            {"byzantine": {"count": 1}},
            grid={"aggregator": [*rules], "byzantine.attack": [*attacks], "optimizer.lr": LRS},
            seeds=2,
        )
        return [Outcome(point, "finished", {"metrics": score(point)}) for point in plan.points]

    return outcomes


def place(point):
    settings = point.settings
    return settings["aggregator"], settings["optimizer.lr"], settings["byzantine.attack"]


def test_the_value_with_the_best_worst_case_is_chosen_for_each_rule(outcomes):
    def score(point):
        return {"validation_accuracy": SCORES[place(point)] + (-0.01 if point.seed == 1 else 0.01)}

    median, mean = choose("optimizer.lr", outcomes(score))
    assert median.settings == {"aggregator": "median"}
    assert (median.chosen.value, median.chosen.attack) == (0.5, "ipm")
    assert median.chosen.worst == pytest.approx(0.6)
    assert [candidate.worst for candidate in median.candidates] == pytest.approx([0.2, 0.6])
    assert mean.chosen.value == 0.1  # what it does without an attack has no part in it


def test_where_there_is_no_accuracy_the_smallest_loss_is_best(outcomes):
    (choice,) = choose(
        "optimizer.lr",
        outcomes(lambda point: {"validation_loss": 1 - SCORES[place(point)]}, rules=["median"]),
    )
    assert (choice.metric, choice.chosen.value) == ("validation_loss", 0.5)
    assert choice.row("optimizer.lr") == (
        "median",
        "optimizer.lr 0.5",
        "validation_loss 0.4000, ipm",
    )


def test_without_attacks_the_best_value_is_chosen(outcomes):
    (choice,) = choose(
        "optimizer.lr",
        outcomes(
            lambda point: {"validation_accuracy": SCORES[place(point)]}, rules=["median"], attacks=[None]
        ),
    )
    assert (choice.chosen.value, choice.chosen.attack) == (0.1, None)


def test_the_number_of_attackers_is_the_choice_of_the_attacker(planned):
    plan = planned(
        {"workers": 7, "f": 2},
        grid={"byzantine.count": [1, 2], "byzantine.attack": [None, "ipm"], "optimizer.lr": LRS},
    )
    scores = {(0, 0.1): 0.9, (1, 0.1): 0.8, (2, 0.1): 0.1, (0, 0.5): 0.7, (1, 0.5): 0.6, (2, 0.5): 0.5}
    places = [(point.config.byzantine.count, point.settings["optimizer.lr"]) for point in plan.points]
    metrics = [{"metrics": {"validation_accuracy": scores[place]}} for place in places]
    outcomes = [Outcome(p, "finished", found) for p, found in zip(plan.points, metrics, strict=True)]
    (choice,) = choose("optimizer.lr", outcomes)
    assert (choice.settings, choice.chosen.value, choice.chosen.worst) == ({}, 0.5, 0.5)


def test_a_value_with_a_run_without_a_score_is_not_chosen(outcomes):
    def score(point):
        return {"validation_accuracy": None if place(point)[1] == 0.5 and point.seed == 2 else 0.1}

    choices = choose("optimizer.lr", outcomes(score))
    assert [choice.chosen.value for choice in choices] == [0.1, 0.1]
    assert choices[0].candidates[1].worst is None
    assert choose("optimizer.lr", outcomes(lambda point: {})) == ()
