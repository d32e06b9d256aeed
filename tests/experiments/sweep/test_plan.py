"""The points of a grid: which there are, which are left out, and why."""

import json
from pathlib import Path

import pytest

from varangian.config import loads
from varangian.config.identity import run_id
from varangian.experiments.sweep.grid import GridFile
from varangian.experiments.sweep.plan import label, make_plan
from varangian.registry import ConfigError


def of(plan):
    return [(*point.settings.values(), point.seed) for point in plan.points]


def test_points_are_the_product_of_cases_axes_and_seeds(planned):
    plan = planned(
        cases=[{"workers": 5}, {"workers": 7, "f": 2}],
        grid={"aggregator": ["median", "mean"]},
        seeds=[4, 8],
    )
    assert of(plan) == [
        (5, "median", 4),
        (5, "median", 8),
        (5, "mean", 4),
        (5, "mean", 8),
        (7, 2, "median", 4),
        (7, 2, "median", 8),
        (7, 2, "mean", 4),
        (7, 2, "mean", 8),
    ]
    last = plan.points[-1]
    assert (last.config.workers, last.config.f, last.config.seed) == (7, 2, 8)


def test_a_value_without_entries_has_a_label():
    assert (
        label({"server.gate": {}, "aggregator": {"krum": {}}, "trackers": []})
        == "gate {}  krum  trackers []"
    )


def test_a_point_has_the_identity_of_its_run_and_is_a_whole_configuration(planned):
    plan = planned(grid={"aggregator": ["nnm+krum", {"multi_krum": {"select": 2}}]}, seeds=2)
    for point in plan.points:
        assert run_id(loads(point.config.resolved())) == point.id
    assert len({point.id for point in plan.points}) == 4


def test_settings_on_one_line_have_the_same_value(planned):
    plan = planned(
        {"workers": 9, "byzantine": {"attack": "sign_flip"}}, grid={"f, byzantine.count": [1, 2]}
    )
    assert [(p.config.f, p.config.byzantine.count) for p in plan.points] == [(1, 1), (2, 2)]


def test_a_setting_below_another_one_is_set_after_it(planned):
    plan = planned(grid={"aggregator.multi_krum.select": [1, 2]}, cases=[{"aggregator": "multi_krum"}])
    assert [point.config.aggregator.rule.select for point in plan.points] == [1, 2]


def test_a_point_without_an_attack_has_no_attackers(planned):
    plan = planned({"byzantine": {"count": 1}}, grid={"byzantine.attack": [None, "sign_flip"], "f": [0, 1]})
    assert [(p.config.byzantine.count, p.config.byzantine.attack is None) for p in plan.points] == [
        (0, True),
        (0, True),
        (1, False),
        (1, False),
    ]


def test_attacks_without_attackers_are_one_point(planned):
    plan = planned(grid={"byzantine.count": [0, 1], "byzantine.attack": ["sign_flip", "ipm"]})
    assert of(plan) == [(0, None, 1), (1, "sign_flip", 1), (1, "ipm", 1)]


def test_impossible_points_are_listed_with_their_reason_and_not_run(planned):
    plan = planned(
        {"byzantine": {"attack": "alie", "count": 2}}, grid={"aggregator": ["krum", "median"], "f": [1, 2]}
    )
    assert of(plan) == [("krum", 1, 1), ("median", 1, 1), ("median", 2, 1)]
    (left,) = plan.impossible
    assert left.settings == {"aggregator": "krum", "f": 2}
    assert "the rule promises nothing" in left.reason
    assert "it needs n >= 2 f + 3" in left.reason


def test_an_attack_that_cannot_be_mounted_is_an_impossible_point(planned):
    plan = planned({"byzantine": {"attack": "sign_flip"}}, grid={"byzantine.count": [1, 5]})
    assert [left.reason for left in plan.impossible] == [
        "byzantine.count: should leave at least one of the 5 workers honest. Found 5."
    ]


def test_a_grid_without_a_possible_point_is_an_error(planned):
    with pytest.raises(ConfigError, match=r"grid: has no point that is possible\. f: should be below"):
        planned(grid={"f": [5, 6]})


def test_excluded_points_are_listed_and_a_rule_that_excludes_nothing_is_told(planned):
    plan = planned(
        grid={"aggregator": ["mean", {"multi_krum": {"select": 2}}], "f": [0, 1]},
        exclude=[{"aggregator": "multi_krum", "f": [0, 1]}, {"f": 7}],
    )
    assert of(plan) == [("mean", 0, 1), ("mean", 1, 1)]
    assert [left.reason for left in plan.excluded] == ["exclude.0: multi_krum  f 0, 1"] * 2
    assert plan.notes == ("exclude.1 excludes no point: f 7",)


def test_a_grid_of_which_everything_is_excluded_is_an_error(planned):
    with pytest.raises(ConfigError, match="exclude: leaves no point of the grid"):
        planned(grid={"f": [0, 1]}, exclude=[{"f": [0, 1]}])


def test_two_points_that_are_the_same_run_are_an_error(planned):
    with pytest.raises(ConfigError, match="has two points that are the same run: krum  seed 1, and krum"):
        planned(grid={"aggregator": ["krum", {"krum": {"f": 1}}]})


def test_more_points_than_a_few_thousand_have_to_be_asked_for(small):
    grid = small(grid={"optimizer.lr": [n / 1000 for n in range(1, 102)]}, seeds=100)
    with pytest.raises(ConfigError, match=r"grid: has 10100 points, and more than 10000 .* Add --yes"):
        make_plan(grid)
    few = small(grid={"f": [0, 1]}, seeds=2)
    assert len(make_plan(few, most=None).points) == 4


def test_absences_by_chance_are_checked_for_every_seed(planned):
    plan = planned({"availability": {"random": {"chance": 0.8}}}, grid={"f": [1]}, seeds=20)
    assert plan.points
    assert plan.impossible
    assert {"f", "seed"} == set(plan.impossible[0].settings)


def test_the_index_says_what_every_point_is_without_results(planned):
    plan = planned(grid={"aggregator": ["median", "mean"]}, seeds=2)
    index = json.loads(json.dumps(plan.plain()))
    assert index["name"] == "small"
    assert index["config"]["data"] == {"synthetic": index["config"]["data"]["synthetic"]}
    assert index["points"][3] == {
        "id": plan.points[3].id,
        "settings": {"aggregator": "mean"},
        "seed": 2,
        "config": {"seed": 2, "aggregator": {"mean": {}}},
    }
    assert plan.file.name == "small.sweep.json"


@pytest.mark.parametrize(("name", "points"), [("rules", 108), ("learning_rates", 48)])
def test_the_grid_of_an_example_has_only_possible_points(name, points):
    plan = make_plan(GridFile.read(Path(__file__).parents[3] / "examples" / "sweep" / f"{name}.yaml"))
    assert (len(plan.points), plan.impossible, plan.notes) == (points, (), ())
