"""Grid files: what they say, and what is wrong with them."""

import pytest

from varangian.config.overrides import Assignment
from varangian.experiments.sweep.grid import GridFile
from varangian.registry import ConfigError


def problems(content, **options):
    with pytest.raises(ConfigError) as error:
        GridFile.of(content, **options)
    return [str(problem) for problem in error.value.problems]


def test_the_parts_of_a_grid_file(tmp_path):
    (tmp_path / "base.yaml").write_text("rounds: 7\n")
    (tmp_path / "rules.yaml").write_text(
        "base: base.yaml\n"
        "grid:\n  aggregator: [mean, nnm+krum]\n  f, byzantine.count: [1, 2]\n"
        "cases:\n  - {workers: 9}\n"
        "exclude:\n  - {aggregator: mean, f: 2}\n"
        "seeds: 3\n"
    )
    grid = GridFile.read(tmp_path / "rules.yaml", [Assignment("model", "softmax", "model=softmax")])
    assert (grid.name, grid.seeds, grid.size) == ("rules", (1, 2, 3), 12)
    assert grid.varying == ("aggregator", "f", "byzantine.count", "workers")
    simulated = {"backend": "simulate", "simulate": {"gradients": "batched"}}
    assert grid.base == {**simulated, "rounds": 7, "model": "softmax"}


def test_grids_share_a_list_in_a_file(tmp_path):
    (tmp_path / "lists.yaml").write_text("f: [1, 2]\naggregator: [mean, nnm+krum]\n")
    content = {"grid": {"f": "lists.yaml", "aggregator": "lists.yaml"}}
    grid = GridFile.of(content, folder=tmp_path)
    assert [axis.values for axis in grid.axes] == [(1, 2), ("mean", "nnm+krum")]
    (said,) = problems({"grid": {"ff": "lists.yaml"}}, folder=tmp_path)
    assert said.startswith("grid.ff: should name a file with a list 'ff'. Found 'lists.yaml'.")
    (said,) = problems({"grid": {"f": "none.yaml"}}, folder=tmp_path)
    assert "none.yaml: the configuration cannot be read: no such file" in said


def test_what_the_base_says_replaces_the_defaults_of_a_sweep():
    exact = {"simulate": {"gradients": "exact"}}
    assert GridFile.of({"base": exact, "grid": {"f": [1]}}).base == {"backend": "simulate", **exact}
    overrides = [Assignment("backend", "processes", "")]
    assert GridFile.of({"grid": {"f": [1]}}, overrides=overrides).base == {"backend": "processes"}
    tuned = {"grid": {"f": [1, 2]}, "tune": {"setting": "f", "validation": 0.2}}
    assert GridFile.of(tuned).base["evaluate"] == {"validation": 0.2}


def test_all_misspelt_paths_are_told_at_once():
    content = {
        "base": {"roundz": 3},
        "grid": {"optimizer.lrr": [0.1, 0.2], "agregator": ["mean"], "aggregator.krum.selct": [1]},
        "cases": [{"worker.momentun": 0.5}],
    }
    assert problems(content) == [
        "base.roundz: there is no such setting. Found 3. Did you mean 'rounds'?",
        "grid.optimizer.lrr: there is no such setting. Found 0.1. Did you mean 'lr'?",
        "grid.agregator: there is no such setting. Found 'mean'. Did you mean 'aggregator'?",
        "grid.aggregator.krum.selct: there is no such field. Found 1. Did you mean 'select'?",
        "cases.0.worker.momentun: there is no such setting. Found 0.5. Did you mean 'momentum'?",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"grid": {"f": []}}, "grid.f: should have at least one value. Found []."),
        ({"grid": {"f": 3}}, "grid.f: should be a list of values. Found 3. A single value belongs below"),
        ({"grid": {"f": [1, 2, 1]}}, "grid.f: has a value twice. Found 1."),
        ({"grid": {"f": [1, "two"]}}, "grid.f: should be an integer. Found 'two'."),
        (
            {"grid": {"aggregator": ["medain"]}},
            "grid.aggregator: there is no aggregator of this name. Found",
        ),
        ({"grid": ["f"]}, "grid: should be a mapping of settings to lists of values. Found ['f']."),
        (
            {"grid": {"output": ["a", "b"]}},
            "grid.output: should not vary: the numbers of a run do not depend",
        ),
        ({"grid": {"f": [1]}, "cases": [{"f": 2}]}, "grid.f: should be in one place of the grid"),
        (
            {"cases": []},
            "cases: should be a list of mappings of settings to values, at least one. Found [].",
        ),
        ({"cases": ["f"]}, "cases.0: should be a mapping of settings to values. Found 'f'."),
        ({"cases": [{"f": 1}, {"f": 1}]}, "cases: has a value twice. Found {'f': 1}."),
        (
            {"grid": {"f": [1]}, "seeds": 0},
            "seeds: should be a number of seeds, or a list of whole numbers",
        ),
        ({"grid": {"f": [1]}, "seeds": [1, 1]}, "seeds: has a value twice. Found 1."),
        ({"grid": {"seed": [1]}, "seeds": 2}, "seeds: should be left out where `seed` varies in the grid."),
        (
            {"grid": {"f": [1]}, "seed": 2},
            "seed: there is no such part of a grid. Found 2. It is a setting:",
        ),
        (
            {"gird": {"f": [1]}},
            "gird: there is no such part of a grid. Found {'f': [1]}. Did you mean 'grid'?",
        ),
        ({"base": {"f": 1}}, "grid: should say what varies, as `byzantine.attack: [sign_flip, alie]`."),
        (
            {"base": 3, "grid": {"f": [1]}},
            "base: should be a mapping of settings to values, or the path of a",
        ),
        (
            {"base": "no.yaml", "grid": {"f": [1]}},
            "no.yaml: the configuration cannot be read: no such file",
        ),
        (
            {"grid": {"f": [1, 2]}, "exclude": [{"ff": 1}]},
            "exclude.0: should name settings that vary. Found",
        ),
        (
            {"grid": {"f": [1]}, "name": "a/b"},
            "name: should be a name of files, without a slash. Found 'a/b'.",
        ),
        (
            {"grid": {"f": [1]}, "name": "a\0b"},
            "name: should be a name of files, of at most 200 bytes that can be printed. Found",
        ),
        (
            {"grid": {"f": [1]}, "name": "ä" * 101},
            "name: should be a name of files, of at most 200 bytes that can be printed. Found",
        ),
        (
            {"grid": {"byzantine.attack": ["none"]}},
            "grid.byzantine.attack: should be null where none is meant. Found 'none'.",
        ),
        (
            {"grid": {"f": [1, 2]}, "tune": "optimizer.lr"},
            "tune: should be a setting with several values in",
        ),
        ({"grid": {"optimizer.lr": [0.1]}, "tune": "optimizer.lr"}, "tune: should have several values in"),
        (
            {"grid": {"f": [1, 2]}, "tune": {"setting": "f", "validation": 2}},
            "tune.validation: should be a share of the training data, between 0 and 1. Found 2.",
        ),
    ],
)
def test_a_grid_file_that_is_wrong(content, problem):
    first, *_ = problems(content)
    assert first.startswith(problem)


def test_a_setting_of_all_runs_must_not_vary():
    overrides = [Assignment("f", 2, "f=2")]
    assert problems({"grid": {"f": [1, 2]}}, overrides=overrides) == [
        "f: varies in the grid, so it cannot be set for all runs. Leave one of them out."
    ]


def test_a_grid_file_that_is_no_mapping(tmp_path):
    (tmp_path / "list.yaml").write_text("- f\n")
    with pytest.raises(ConfigError, match=r"list.yaml: should be a mapping of settings to values"):
        GridFile.read(tmp_path / "list.yaml")


def test_a_grid_can_have_its_seeds_replaced(small):
    assert small(grid={"f": [0, 1]}, seeds=5).with_seeds([7]).seeds == (7,)
    with pytest.raises(ConfigError, match="left out where `seed` varies"):
        small(grid={"seed": [1, 2]}).with_seeds([7])
