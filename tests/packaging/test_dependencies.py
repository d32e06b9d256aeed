"""constraints.txt pins everything that pyproject.toml asks for, within its bounds."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def pins(root):
    lines = (root / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def wanted(pyproject):
    project, groups = pyproject["project"], pyproject["dependency-groups"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    grouped = [text for group in groups.values() for text in group if isinstance(text, str)]
    asked = map(Requirement, [*project["dependencies"], *extras, *grouped])
    return [requirement for requirement in asked if requirement.name != "varangian"]


def test_every_dependency_is_pinned_within_its_bounds(wanted, pins):
    outside = [
        f"{requirement} but {pins.get(canonicalize_name(requirement.name))}"
        for requirement in wanted
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"))
    ]
    assert outside == []


def test_pins_are_exact_sorted_and_local_to_no_build(pins):
    assert list(pins) == sorted(pins)
    assert all(canonicalize_name(name) == name for name in pins)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values())


def test_torch_is_the_agreed_one(pins):
    assert pins["torch"] == "2.13.0"


def test_every_dependency_has_an_oldest_version(wanted):
    lowest = [r for r in wanted if any(part.operator in (">=", "==") for part in r.specifier)]
    assert lowest == wanted


LEFT_OUT = {"flower", "huggingface", "lightning", "mlflow", "nvflare", "ray", "torchft", "wandb"}
"""Extras that are large, and for few; and frameworks that whoever needs them has."""


def test_all_takes_every_other_extra(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(extras) >= LEFT_OUT
    assert Requirement(everything).extras == set(extras) - {"all"} - LEFT_OUT
