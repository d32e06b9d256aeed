"""The composite attack: each operator against values computed by hand, the budget, memory, and errors."""

import math

import pytest
import torch
from torch import Tensor

from varangian.aggregators import Aggregator, Krum, Mean
from varangian.registry import ConfigError
from varangian.worker.attacks import ATTACKS, Composite, Knowledge
from varangian.worker.attacks.live_rule import LiveRule
from varangian.worker.attacks.mounted import stepped

HONEST = torch.tensor([[0.0, 2.0], [4.0, 2.0], [2.0, 0.0], [2.0, 4.0]])
"""The mean is (2, 2), the deviation sqrt 2 in both columns, the largest distance 4."""
ROOT = math.sqrt(2)


def knows(
    *, rank: int = 0, f: int = 2, round: int = 0, model: Tensor | None = None, rule: LiveRule | None = None
) -> Knowledge:
    return Knowledge(
        HONEST,
        len(HONEST) + f,
        f,
        rank,
        round,
        torch.Generator().manual_seed(round),
        torch.zeros(2) if model is None else model,
        rule,
    )


def sent(*steps: str, budget: float | None = None, rank: int = 0, rule: LiveRule | None = None) -> Tensor:
    attack = Composite(steps=steps, budget=budget)
    vector, _ = stepped(attack, HONEST[0], knows(rank=rank, rule=rule), attack.start())
    assert vector is not None
    return vector


@pytest.mark.whole
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("scale 3",), (6, 6)),
        (("flip 2",), (-4, -4)),
        (("alie 1",), (2 - ROOT, 2 - ROOT)),
        (("ipm 0.5",), (-1, -1)),
        # |(2 - t, 2 - t) - (4, 2)|^2 = (2 + t)^2 + t^2 = 16 at t = sqrt 7 - 1.
        (("min_max",), (3 - math.sqrt(7),) * 2),
        (("min_max_std",), (3 - math.sqrt(7),) * 2),
        (("min_max_sign 2",), (4 - 2 * math.sqrt(7),) * 2),
        # Each honest row has the sum 8 + 8 + 16 = 32; the mean 16, and 4 |t p|^2 more with p = (-2, -2).
        (("min_sum",), (2 - ROOT, 2 - ROOT)),
        (("min_sum_std",), (2 - ROOT, 2 - ROOT)),
        (("min_sum_sign 0.5",), (2 - ROOT / 2, 2 - ROOT / 2)),
        (("toward", "flip 1"), (-2, -2)),  # no step of the model is known before the second round
        (("scale 2", "ipm 1"), (0, 0)),
    ],
)
def test_operators_by_hand(steps: tuple[str, ...], expected: tuple[float, float]) -> None:
    torch.testing.assert_close(sent(*steps), torch.tensor(expected, dtype=torch.float32))


def test_mimic_and_principal() -> None:
    rows = torch.tensor([[0.0, 1.0], [8.0, 1.0], [4.0, 0.0], [4.0, 2.0]])
    given = Knowledge(rows, 6, 2, 0, 0, torch.Generator(), torch.zeros(2))
    for steps, expected in (
        (("mimic 1",), ((0.0, 1.0), (8.0, 1.0))),
        (("mimic 0.5",), ((2.0, 1.0), (6.0, 1.0))),
        # Along the first axis the deviation is sqrt 8, and the mean (4, 1).
        (("principal 1",), ((4 - math.sqrt(8), 1.0),)),
    ):
        attack = Composite(steps=steps)
        vector, _ = stepped(attack, rows[0], given, attack.start())
        assert vector is not None
        assert any(torch.allclose(vector, torch.tensor(one), atol=1e-5) for one in expected)


def test_noise_is_that_of_the_attacker() -> None:
    drawn = torch.randn(2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sent("gaussian 3"), 2 + 3 * ROOT * drawn)


def test_half_is_the_first_half_rounded_up() -> None:
    attack = Composite(steps=("flip 1 half", "scale 2"))
    vectors = [stepped(attack, HONEST[0], knows(rank=rank, f=3), attack.start())[0] for rank in range(3)]
    assert [float(v[0]) for v in vectors if v is not None] == [-4, -4, 4]


def test_budget_draws_back_after_each_step() -> None:
    torch.testing.assert_close(sent("flip 9", budget=1), sent("min_max"))
    torch.testing.assert_close(sent("flip 9", "scale 1", budget=1), sent("min_max"))
    torch.testing.assert_close(sent("alie 0.1", budget=1), sent("alie 0.1"))
    # To the rows the mean has a distance of 2 already.
    torch.testing.assert_close(sent("flip 9", budget=0.1), HONEST.mean(dim=0))


def test_drop_is_spread_over_the_rounds() -> None:
    attack = Composite(steps=("drop 0.4",))
    silent = [stepped(attack, HONEST[0], knows(round=r), attack.start())[0] is None for r in range(10)]
    assert sum(silent) == 4
    assert silent[:5] == silent[5:] == [False, False, True, False, True]


def test_replay_sends_what_was_there_some_rounds_ago() -> None:
    attack, memory, vectors = Composite(steps=("alie 1", "replay 2")), None, []
    for round in range(4):
        given = knows(round=round)
        given = Knowledge(HONEST + round, 6, 2, 0, round, given.rng, given.model)
        vector, memory = stepped(attack, HONEST[0], given, attack.start() if memory is None else memory)
        assert vector is not None
        vectors.append(float(vector[0]) - 2 + ROOT)
    assert vectors == pytest.approx([0, 0, 0, 1], abs=1e-5)


def test_away_goes_against_the_last_step_of_the_model() -> None:
    attack = Composite(steps=("away 0.5",))
    _, memory = stepped(attack, HONEST[0], knows(model=torch.tensor([1.0, 0.0])), attack.start())
    before = dict(memory)
    vector, _ = stepped(attack, HONEST[0], knows(round=1, model=torch.tensor([0.0, 0.0])), memory)
    # The step was along (1, 0); the mean is sqrt 8 long.
    torch.testing.assert_close(vector, torch.tensor([2 - ROOT, 2.0]))
    assert dict(memory) == before


def test_memory_keeps_the_direction_and_not_the_length() -> None:
    attack = Composite(steps=("toward 1 memory",))
    memory = attack.start()
    for round, model in enumerate(([2.0, 0.0], [1.0, 0.0], [1.0, -1.0])):
        vector, memory = stepped(attack, HONEST[0], knows(round=round, model=torch.tensor(model)), memory)
    assert vector is not None
    apart = vector - 2
    # 0.9 (1, 0) + 0.1 (0, 1), as long as the mean.
    expected = torch.tensor([0.9, 0.1]) * math.sqrt(8 / 0.82)
    torch.testing.assert_close(apart, expected)


def test_optimal_asks_the_rule() -> None:
    # The mean deviates more, the larger the factor; Krum chooses one of two copies while they are near.
    far = sent("ipm 1", "optimal 16", rule=LiveRule(Aggregator(Mean(), f=2), 2))
    torch.testing.assert_close(far, torch.tensor([2.0, 2.0]) - 16 * 4)
    krum = LiveRule(Aggregator(Krum(f=1)), 1)
    near = sent("ipm 1", "optimal 16", rule=krum)
    rows = torch.stack([*HONEST, near, near])
    assert torch.equal(krum.aggregator(rows).vector, near)
    assert float((near - 2).norm()) > 2
    halves = sent("ipm 1", "optimal 16 half", rule=LiveRule(Aggregator(Mean(), f=2), 2))
    torch.testing.assert_close(halves, far)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": ["aile 1.5"]}, "Did you mean 'alie'?"),
        ({"steps": [{"flip": 1}]}, "Found [{'flip': 1}]. As [alie 1.5, ipm 0.5 half]."),
        ({"steps": ["alie much"]}, "should have a number as its strength. Found 'much'"),
        ({"steps": ["alie 1 2"]}, "should be an operator, a strength, and perhaps `half` and `memory`"),
        ({"steps": ["alie half half"]}, "should be an operator, a strength"),
        ({"steps": ["alie -1"]}, "should have a positive, finite strength"),
        ({"steps": ["drop 2"]}, "at most 1, the share of the rounds"),
        ({"steps": ["replay 1.5"]}, "should have a whole number of rounds"),
        ({"steps": ["drop memory"]}, "drop has no direction to keep"),
        ({"steps": []}, "`steps` should be 1 to 3. Found 0"),
        ({"steps": ["alie"] * 4}, "`steps` should be 1 to 3. Found 4"),
        ({"budget": 0.0}, "`budget` should be a positive, finite number or null"),
    ],
)
def test_errors_name_the_step_and_the_rule(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=r"byzantine\.attack\.composite") as error:
        ATTACKS.build({"composite": fields}, "byzantine.attack")
    assert said in str(error.value)
    assert "?." not in str(error.value)


def test_needs_two_attackers_for_a_half() -> None:
    assert Composite(steps=("alie half",)).requires(15, 1, 14) is not None
    assert Composite(steps=("alie half",)).requires(15, 2, 13) is None
    assert Composite(steps=("alie",)).requires(3, 2, 1) is not None
