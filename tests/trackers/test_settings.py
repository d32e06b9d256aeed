"""Trackers in a configuration."""

import tomllib
from pathlib import Path

import pytest
from tests.trackers.own_trackers import Lines

import varangian
from varangian.config import load, loads
from varangian.config.identity import run_id
from varangian.registry import ConfigError
from varangian.trackers import TRACKERS, Mlflow, TensorBoard, Wandb, base, missing_packages

OWN = "tests.trackers.own_trackers:"


def test_names_and_settings_become_trackers_and_are_written_again():
    written = ["tensorboard", {"wandb": {"project": "x", "tags": ["a"]}}, {f"{OWN}Lines": {"path": "p"}}]
    config = loads({"trackers": written})
    assert config.trackers == (TensorBoard(), Wandb(project="x", tags=("a",)), Lines("p"))
    again = loads(config.resolved())
    assert again.trackers == config.trackers
    assert config.resolved()["trackers"][0] == {"tensorboard": {"folder": None}}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trackers=tensorbord", "there is no tracker of this name. Found 'tensorbord'. Did you mean"),
        ("trackers=[{wandb: {projekt: x}}]", "trackers.0.wandb.projekt: there is no such field."),
        ("trackers=[{wandb: {mode: live}}]", "trackers.0.wandb.mode: should be one of 'online', 'offline'"),
        ("trackers=[{mlflow: {uri: 'https://me:secret@ml.example'}}]", "uri should have no password"),
        (f"trackers=['{OWN}NoTracker']", "It lacks `begin(run)`, which returns what follows the run"),
    ],
)
def test_what_does_not_fit_is_named(setting, said):
    with pytest.raises(ConfigError) as error:
        load(None, [setting])
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_they_are_no_part_of_the_identity_of_a_run():
    assert run_id(load(None, ["trackers=[tensorboard]"])) == run_id(load())


def test_a_missing_package_is_said_before_a_run_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    (problem,) = missing_packages([Lines("p"), Mlflow()])
    assert str(problem) == (
        "trackers.1.mlflow: needs the package mlflow, which is not installed. Install it with pip install "
        "'varangian[mlflow]', or leave the tracker out."
    )
    with pytest.raises(ConfigError, match="needs the package tensorboardX"):
        varangian.run(backend="simulate", trackers=["tensorboard"], output=str(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_every_extra_that_a_tracker_names_is_one():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    for name in TRACKERS:
        cls, _ = TRACKERS.entry(name)
        assert cls.package in "".join(pyproject["project"]["optional-dependencies"][cls.extra])
