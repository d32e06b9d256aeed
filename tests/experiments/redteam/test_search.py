"""The genetic search: the same seed gives the same front, and a search that was killed goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from varangian.experiments.redteam.catalogue import catalogue
from varangian.experiments.redteam.evaluation import Fitness
from varangian.experiments.redteam.policies import (
    choices,
    known_policies,
    name_of,
    neighbours,
    parameters_of,
    policy_form,
    policy_of,
    spec_of,
)
from varangian.experiments.redteam.search import POPULATION, Archive, Evaluated, front_of, search
from varangian.registry import ConfigError
from varangian.worker.attacks import ATTACKS, Composite

pytest.importorskip("optuna")


def judged(policy: Composite) -> Fitness:
    """More strength is more damage, with a bonus for mimic; any function of the policy will do."""
    strength = sum(step.strength for step in policy.policy)
    bonus = sum(step.operator == "mimic" for step in policy.policy)
    return Fitness(strength / (1 + strength) / 2 + bonus / 8, strength + len(policy.policy))


def carry_out(file: Path, seed: int = 1, generations: int = 2, **more: Any) -> tuple[Archive, int]:
    archive = Archive(file, "s")
    return archive, search(archive, judged, f=3, seed=seed, generations=generations, **more)


def plain(archive: Archive) -> str:
    return json.dumps([one.plain() for one in archive.front])


def test_the_same_seed_gives_the_same_front(tmp_path: Path) -> None:
    first, again = (carry_out(tmp_path / name)[0] for name in ("a", "b"))
    assert plain(first) == plain(again)
    assert [*first.found] == [*again.found]
    other, _ = carry_out(tmp_path / "c", seed=2)
    assert {*other.found} != {*first.found}
    assert [*first.found][:3] == [name_of(policy) for policy in known_policies(3)][:3]


def test_a_search_that_was_killed_goes_on(tmp_path: Path) -> None:
    whole, _ = carry_out(tmp_path / "whole")
    asked = list[str]()

    def killed(policy: Composite) -> Fitness:
        asked.append(name_of(policy))
        if len(asked) == POPULATION + 5:
            raise KeyboardInterrupt
        return judged(policy)

    file = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        search(Archive(file, "s"), killed, f=3, seed=1, generations=2)
    with file.open("a") as out:
        out.write('{"policy": "alie 1.5", "dam')  # what a kill leaves
    archive, _ = carry_out(file)
    assert plain(archive) == plain(whole)
    assert archive.read == POPULATION + 4
    assert file.read_text() == (tmp_path / "whole").read_text()


def test_time_is_up_between_generations_only(tmp_path: Path) -> None:
    archive, generations = carry_out(tmp_path / "a", generations=9, over=lambda: True)
    assert generations == 1
    assert plain(archive) == plain(carry_out(tmp_path / "b", generations=1)[0])


def test_a_file_of_another_search_is_refused(tmp_path: Path) -> None:
    Archive(tmp_path / "a", "one")
    with pytest.raises(ConfigError, match=r"is of another search, .* Choose another folder"):
        Archive(tmp_path / "a", "two")


def test_front_by_hand() -> None:
    given = [(0.5, 3.0), (0.2, 1.0), (0.4, 3.0), (0.2, 2.0), (0.9, 9.0), (0.1, 1.0)]
    front = front_of(Evaluated(Composite(steps=(f"alie {d}",)), Fitness(d, e)) for d, e in given)
    assert [(one.fitness.damage, one.fitness.effort) for one in front] == [(0.2, 1), (0.5, 3), (0.9, 9)]


def test_parameters_make_the_policy_again() -> None:
    assert "half0" in choices(1)
    assert choices(1)["half0"] == (False,)
    for policy in known_policies(3):
        again = policy_of(parameters_of(policy))
        assert [step.operator for step in again.policy] == [step.operator for step in policy.policy]
        built = ATTACKS.build(spec_of(policy), "byzantine.attack")
        assert isinstance(built, Composite)
        assert built.policy == policy.policy
        parameters = parameters_of(policy)
        assert all(parameters[name] in values for name, values in choices(3).items())


def test_neighbours_differ_and_are_different() -> None:
    policy = Composite(steps=("alie 1.5", "ipm 0.5 half"), budget=1.0)
    found = [name_of(one) for one in neighbours(policy, 3)]
    assert name_of(policy) not in found
    assert len({*found}) == len(found)
    for expected in (
        "alie 2, ipm 0.5 half; budget 1",
        "alie 1.5, ipm 0.5; budget 1",
        "ipm 0.5 half; budget 1",
    ):
        assert expected in found
    assert not any(
        "half" in name for name in (name_of(p) for p in neighbours(Composite(steps=("alie 1.5",)), 1))
    )


def test_attacks_of_the_catalogue_as_policies() -> None:
    attacks = [*catalogue()]
    assert "composite" not in attacks
    assert {"alie": {"z": 1.5}} in attacks
    for attack in attacks:
        ATTACKS.build(attack, "byzantine.attack")
    for attack, expected in (
        ({"alie": {"z": 3.0}}, "alie 3"),
        ({"ipm": {"epsilon": "optimal"}}, "ipm 0.5, optimal 64"),
        ({"min_max": {"direction": "std"}}, "min_max_std 1"),
        ("mimic", "mimic 1"),
        (spec_of(Composite(steps=("drop 0.5",), budget=2.0)), "drop 0.5; budget 2"),
    ):
        form = policy_form(attack)
        assert form is not None
        assert name_of(form) == expected
    assert policy_form("sign_flip") == Composite(steps=("flip 10",))
    assert policy_form({"agr_tailored": {"direction": "std"}}) == Composite(steps=("alie 1", "optimal 64"))
    assert policy_form("flag_collusion") in known_policies(3)
    assert policy_form("label_flip") is None
