"""Runs compared: worst cases, curves and heat maps against sums made by hand."""

import json
import statistics

import pytest
from tests.experiments.results.conftest import ATTACKS, RULES, learning, record, settings

from varangian.experiments.results.labels import axis_of
from varangian.experiments.results.read import read_runs
from varangian.experiments.results.run import ResultsError
from varangian.experiments.results.study import Study

SEEDS = (1, 2, 10)


@pytest.fixture(scope="module")
def study(compared):
    return Study.of(read_runs([compared[0]]))


def test_what_varies(study):
    assert study.varying == {
        "aggregator": ("krum", "median"),
        "byzantine.attack": ("none", "alie", "sign_flip"),
        "byzantine.count": ("0", "2"),
        "seed": ("1", "2", "10"),
    }
    assert (study.by, study.notes, study.metric) == ((), (), "accuracy")
    assert study.metrics == ("accuracy", "loss", "train_loss")


@pytest.mark.parametrize("at", ["final", "best", 2])
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_worst_cases(study, compared, at, metric):
    _, numbers = compared

    def value(rule, attack, seed):
        curve = [x if metric == "accuracy" else 1 - x for x in numbers[rule, attack, seed]]
        if at == "best":
            means = [
                statistics.fmean(
                    numbers[rule, attack, s][i] if metric == "accuracy" else 1 - numbers[rule, attack, s][i]
                    for s in SEEDS
                )
                for i in (0, 1)
            ]
            return curve[means.index(max(means) if metric == "accuracy" else min(means))]
        return curve[-1] if at == "final" else statistics.fmean(curve)

    table = study.worst_cases(metric, at)
    assert table.attacks == ("alie", "sign_flip")
    assert [row.rule for row in table.rows] == ["krum", "median"]
    worst = min if metric == "accuracy" else max
    for row in table.rows:
        means = {}
        for attack in ATTACKS:
            values = [value(row.rule, attack, seed) for seed in SEEDS]
            cell = row.clean if attack == "none" else row.cells[attack]
            assert cell.values == pytest.approx(values)
            assert cell.mean == pytest.approx(statistics.fmean(values))
            assert cell.std == pytest.approx(statistics.stdev(values))
            if attack != "none":
                means[attack] = statistics.fmean(values)
        assert row.worst == pytest.approx(worst(means.values()))
        assert means[row.worst_attack] == pytest.approx(row.worst)
        single = {(a, s): value(row.rule, a, s) for a in ("alie", "sign_flip") for s in SEEDS}
        assert row.worst_run == pytest.approx(worst(single.values()))
        attack, seed = row.worst_run_at
        assert single[attack, int(seed)] == pytest.approx(row.worst_run)
        assert row.complete
    best = (max if metric == "accuracy" else min)(table.rows, key=lambda row: row.worst)
    assert [row.rule for row in table.rows if table.is_best(row)] == [best.rule]


def test_curves(study, compared):
    _, numbers = compared
    curves = {(curve.rule, curve.attack): curve for curve in study.curves()}
    assert len(curves) == 6
    for (rule, attack), curve in curves.items():
        assert curve.rounds == (2, 4)
        for i in (0, 1):
            values = [numbers[rule, attack, seed][i] for seed in SEEDS]
            assert curve.mean[i] == pytest.approx(statistics.fmean(values))
            assert curve.std[i] == pytest.approx(statistics.stdev(values))
            assert (curve.low[i], curve.high[i]) == (min(values), max(values))


def test_scores_after_steps_of_the_same_length(study, compared):
    _, numbers = compared
    curves = {(curve.rule, curve.attack): curve for curve in study.curves_by_length()}
    assert curves["krum", "alie"].x == (2.0, 4.0)  # learning rate 0.5, norms 2 and 1
    assert curves["median", "alie"].x == (1.0, 2.0)
    (alie,) = [one for one in study.matched() if one.attack == "alie"]
    assert (alie.length, alie.lengths) == (2.0, {"krum": 4.0, "median": 2.0})
    for rule, place in (("krum", 0), ("median", 1)):
        mean = statistics.fmean(numbers[rule, "alie", seed][place] for seed in SEEDS)
        assert alie.scores[rule][0] == pytest.approx(mean)
    assert study.length_note == ""


def test_a_map_of_rules_and_attacks_where_nothing_else_varies(study):
    (map,) = study.heat_maps(at="final")
    assert (map.name, map.x, map.y) == ("test_heatmap", ("none", "alie", "sign_flip"), ("median", "krum"))
    row = study.worst_cases().rows[0]
    assert map.squares[1][1].value == row.cells["alie"].mean


@pytest.fixture(scope="module")
def heterogeneous(tmp_path_factory, write_run):
    """Worst accuracies by rule, f and alpha; n = 8 + f, and as many attack as the rule tolerates."""
    folder, numbers = tmp_path_factory.mktemp("heterogeneous"), {}
    for i, rule in enumerate(("krum", "median")):
        for f in (0, 1, 2):
            for alpha in (10.0, 0.5):
                for j, attack in enumerate(("alie", "sign_flip")):
                    if not f and j:
                        continue
                    accuracy = (7 * i + 3 * f + 11 * alpha + 5 * j) % 13 / 13
                    place = rule, str(f), f"{alpha:g}"
                    numbers[place] = min(numbers.get(place, 1.0), accuracy)
                    config = settings(
                        aggregator={"krum": {"f": f, "select": 1}} if rule == "krum" else {"median": {}},
                        f=f,
                        workers=8 + f,
                        partition={"dirichlet": {"alpha": alpha}},
                        byzantine={"count": f, "attack": ATTACKS[attack] if f else None, "knows": None},
                    )
                    write_run(folder / f"{rule}{f}{alpha}{attack}", config, learning([accuracy]))
    return folder, numbers


def test_heat_maps_over_f_and_heterogeneity(heterogeneous):
    folder, numbers = heterogeneous
    study = Study.of(read_runs([folder]))
    assert study.by == ("f", "partition.dirichlet.alpha")
    assert study.rules == ("krum", "median")  # an f of its own is no field that varies
    krum, median, both = study.heat_maps()
    assert [one.name for one in (krum, median, both)] == [
        "test_heatmap", "test_heatmap", "aggregated_test_heatmap",
    ]  # fmt: skip
    assert (both.x_title, both.x) == ("f", ("0", "1", "2"))
    assert (both.y_title, both.y) == ("partition.dirichlet.alpha", ("0.5", "10"))
    for j, alpha in enumerate(both.y):
        for i, f in enumerate(both.x):
            values = {rule: numbers[rule, f, alpha] for rule in ("krum", "median")}
            assert krum.squares[j][i].value == values["krum"]
            assert median.squares[j][i].value == values["median"]
            assert both.squares[j][i].value == max(values.values())
            assert values[both.squares[j][i].of] == max(values.values())
    assert study.heat_maps("train_loss")[0].name == "loss_heatmap"


def test_labels_have_the_fields_that_vary(tmp_path, write_run):
    rules = [
        {"krum": {"f": 2, "select": 1}},
        {"krum": {"f": 2, "select": 3}},
        {"mix": [{"nnm": {"f": 2}}], "rule": {"krum": {"f": 2, "select": 1}}},
        {"mix": [{"nnm": {"f": 1}}], "rule": {"median": {}}},
    ]
    attacks = [{"alie": {"z": None}}, {"alie": {"z": 1.5}}, {"mimic": {}}]
    for i, rule in enumerate(rules):
        for j, attack in enumerate(attacks):
            config = settings(aggregator=rule, byzantine__attack=attack)
            write_run(tmp_path / f"{i}{j}", config, learning([0.5]))
    study = Study.of(read_runs([tmp_path]))
    assert set(study.rules) == {
        "krum(select=1)", "krum(select=3)", "nnm+krum(select=1)", "nnm(f=1)+median",
    }  # fmt: skip
    assert study.attacks == ("alie", "alie(z=1.5)", "mimic")


def test_a_rule_for_each_block_is_named_so():
    values = [{"krum": {"f": 2}}, {"rule": {"krum": {"f": 2}}, "per_block": True}]
    values += [{"mix": [{"nnm": {"f": 1}}], "rule": {"krum": {"f": 2}}, "per_block": True}]
    axis = axis_of("aggregator", values, whole=True)
    assert [axis[value] for value in values] == ["krum", "krum per block", "nnm+krum per block"]


def test_own_code_goes_by_the_name_of_its_class():
    values = [
        {"mine:Rule": {"k": 1}},
        {"mix": [{"nnm": {}}], "rule": {"mine:Rule": {"k": 2}}},
        {"krum": {}},
    ]
    axis = axis_of("aggregator", values, whole=True)
    assert [axis[value] for value in values] == ["Rule(k=1)", "nnm+Rule(k=2)", "krum"]
    same = [{"mine:krum": {}}, {"krum": {}}]
    assert {axis_of("aggregator", same, whole=True)[value] for value in same} == {"mine:krum", "krum"}


def test_attack_free_runs_stand_beside_every_number_of_attackers(tmp_path, write_run):
    for count, accuracy in ((0, 0.9), (1, 0.8), (2, 0.7)):
        attack = ATTACKS["alie"] if count else None
        config = settings(byzantine={"count": count, "attack": attack, "knows": None})
        write_run(tmp_path / str(count), config, learning([accuracy]))
    table = Study.of(read_runs([tmp_path])).worst_cases()
    assert table.by == ("byzantine.count",)
    assert [(row.group, row.clean.mean, row.worst) for row in table.rows] == [
        (("1",), 0.9, 0.8),
        (("2",), 0.9, 0.7),
    ]
    (map,) = Study.of(read_runs([tmp_path])).heat_maps()
    assert (map.x_title, map.x, map.y) == ("byzantine.count", ("0", "1", "2"), ("",))
    assert [(square.value, square.of) for square in map.squares[0]] == [
        (0.9, "none"), (0.8, "alie"), (0.7, "alie"),
    ]  # fmt: skip


def test_failed_and_missing_runs_stay_visible(tmp_path, write_run):
    alie = {"byzantine__attack": ATTACKS["alie"]}
    write_run(tmp_path / "a", settings(seed=1, **alie), learning([0.5]))
    write_run(tmp_path / "b", settings(seed=2, **alie), learning([0.1]), ended="failed", reason="no quorum")
    write_run(tmp_path / "c", settings(seed=3, **alie), learning([0.1]), ended=None, error="disk <full>")
    configs = {name: settings(seed=seed, **alie) for seed, name in enumerate("abcd", start=1)}
    configs["e"] = settings(seed=1, byzantine__attack=ATTACKS["sign_flip"])
    points = [
        {"id": name, "settings": {}, "seed": config["seed"], "config": config}
        for name, config in configs.items()
    ]
    plan = tmp_path / "grid.sweep.json"
    plan.write_text(
        json.dumps(
            {
                "config": settings(),
                "points": points,
                "impossible": [{"settings": {"f": 9}, "reason": "n >= 2f + 3"}],
            }
        )
    )
    study = Study.of(read_runs([plan]))
    (row,) = study.worst_cases().rows
    cell = row.cells["alie"]
    assert (cell.values, cell.planned) == ((0.5, 0.1), 4)
    assert [(gap.seed, gap.reason) for gap in cell.early] == [("2", "no quorum")]
    assert [(gap.seed, gap.state, gap.reason) for gap in cell.gaps] == [
        ("3", "error", "disk <full>"),
        ("4", "missing", "it has not been run"),
    ]
    assert (row.cells["sign_flip"].mean, row.worst, row.complete) == (None, 0.3, False)
    assert study.left_out == (({"f": 9}, "n >= 2f + 3"),)
    what = "ended before their last round and count with the score that they had then"
    assert study.notes == (
        f"1 of 5 runs {what}: no quorum (1).",
        "3 of 5 runs have no result: 1 error, 2 missing; disk <full> (1).",
    )


@pytest.mark.parametrize("best", [{"krum": 0.1, "median": 0.2}, {"krum": 0.2, "median": 0.2}])
def test_only_the_chosen_learning_rate_counts(tmp_path, write_run, best):
    points, configs = [], {}
    for rule in RULES:
        for lr in (0.1, 0.2):
            name = f"{rule}-{10 * lr:.0f}"
            config = settings(aggregator=RULES[rule], optimizer__lr=lr, byzantine__attack=ATTACKS["alie"])
            accuracy = 0.9 if lr == best[rule] else 0.99
            configs[name] = write_run(tmp_path / name, config, learning([accuracy]))
            points.append({"id": name, "settings": {"aggregator": rule, "optimizer.lr": lr}, "seed": 1})
    chosen = [{"settings": {"aggregator": rule}, "value": lr} for rule, lr in best.items()]
    plan = tmp_path / "grid.sweep.json"
    plan.write_text(json.dumps({"points": points, "tune": {"path": "optimizer.lr", "chosen": chosen}}))
    study = Study.of(read_runs([plan]))
    table = study.worst_cases()
    assert (table.by, table.tuned) == ((), "optimizer.lr")
    assert [(row.rule, row.worst, row.carried) for row in table.rows] == [
        (rule, 0.9, {"optimizer.lr": str(lr)}) for rule, lr in best.items()
    ]
    assert study.notes == ("Runs are left out since another optimizer.lr was chosen for their rule: 2.",)


def test_runs_without_classes_fall_to_the_loss(tmp_path, write_run):
    for name, losses in (("alie", [1.0, 4.0]), ("sign_flip", [1.0, float("inf")])):
        rows = [record(i, loss=loss, metrics={"mae": 2 * loss}) for i, loss in enumerate(losses)]
        config = settings(byzantine__attack=ATTACKS[name])
        write_run(tmp_path / name, config, rows, names=("mae",))
    study = Study.of(read_runs([tmp_path]))
    assert study.metrics == ("loss", "mae")
    (row,) = study.worst_cases().rows
    assert (row.cells["alie"].mean, row.worst, row.worst_attack) == (4.0, float("inf"), "sign_flip")
    (row,) = study.worst_cases("mae", "best").rows
    assert row.worst == 2.0
    with pytest.raises(ResultsError, match=r"No run has the score 'accuracy'. Known: loss, mae"):
        study.worst_cases("accuracy")


def test_repeated_runs_count_once(tmp_path, write_run):
    for name in ("a", "b"):
        write_run(tmp_path / name, settings(), learning([0.5]))
    study = Study.of(read_runs([tmp_path]))
    assert len(study.runs) == 1
    assert study.notes == ("Runs with the settings and the seed of others are left out: 1.",)


def test_no_finished_run(tmp_path, write_run):
    write_run(tmp_path / "a", settings(), learning([0.5]), ended=None)
    write_run(tmp_path / "b", settings(), [], ended=None, error="no such device")
    found = read_runs([tmp_path])
    with pytest.raises(
        ResultsError, match=r"no finished run to report. Found 2: 1 unfinished, 1 error; as"
    ):
        Study.of(found)
    assert len(Study.of(found, unfinished=True).runs) == 1


def test_the_direction_of_a_score_is_that_of_its_metric(tmp_path, write_run):
    rows = [record(0, accuracy=0.5, loss=1.0, metrics={"backdoor": 0.2, "margin": 0.3})]
    config = settings(metrics=["accuracy", {"attack_success": {"name": "backdoor"}}])
    write_run(tmp_path / "a", config, rows, names=("accuracy", "backdoor", "margin"))
    study = Study.of(read_runs([tmp_path]))
    better = {name: study.better(name) for name in study.metrics}
    assert better == {"accuracy": "higher", "loss": "lower", "backdoor": "lower", "margin": "higher"}
