import dataclasses
import itertools
import math
import statistics

import pytest
import torch

from varangian.registry import ConfigError
from varangian.worker.attacks import (
    ATTACKS,
    Alie,
    CoordinateDrop,
    DataAttack,
    ExtremeScale,
    Gaussian,
    Ipm,
    Knowledge,
    LabelFlip,
    Mimic,
    NonFinite,
    ProtocolAttack,
    SignFlip,
    Subnormal,
    Uniform,
    on_vectors,
    why_impossible,
    z_max,
)
from varangian.worker.attacks.alie import population_deviation
from varangian.worker.attacks.mounted import first_memory, stepped

pytestmark = pytest.mark.usefixtures("untouched_generator")

GRADIENT_ATTACKS = [name for name in ATTACKS if name != "silence" and on_vectors(ATTACKS.build(name, ""))]
"""Those that send a vector in their first round."""
RANDOM = {"uniform", "gaussian", "coordinate_drop", "stat_opt", "copy"}
ROWS = torch.tensor([[1.0, -2.0, 0.5], [3.0, -2.0, 0.0], [5.0, -2.0, 4.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def knows(honest=ROWS, *, n=15, f=3, rank=0, round=0, seed=0, **more):
    more = {"rng": generator(seed), "model": torch.zeros(honest.shape[1]), **more}
    return Knowledge(honest=honest, n=n, f=f, rank=rank, round=round, **more)


def vector(attack, own, seen):
    """What is sent in the first round."""
    return stepped(attack, own, seen, first_memory(attack))[0]


def gaussian_rows(k, d, seed=0):
    return torch.randn(k, d, generator=generator(seed))


def test_the_registry_holds_what_the_command_line_promises():
    drastic = {"coordinate_drop", "extreme_scale", "gaussian", "non_finite", "subnormal", "uniform"}
    with_memory = {"replay", "rop", "sleeper", "stale", "stored_row", "xfed"}
    known = {"alie", "composite", "ipm", "label_flip", "mimic", "sign_flip", "silence"}
    assert set(ATTACKS) >= known | drastic | with_memory
    protocol = {"churn", "equivocate", "resend", "size_lie", "slow_drip", "stale_push", "wrong_shape"}
    assert {name for name in ATTACKS if isinstance(ATTACKS.build(name, ""), ProtocolAttack)} == protocol


@pytest.mark.parametrize("name", [*ATTACKS])
def test_an_attack_is_of_one_kind_and_says_what_it_is(name):
    attack = ATTACKS.build(name, "")
    kinds = on_vectors(attack), isinstance(attack, DataAttack), isinstance(attack, ProtocolAttack)
    assert sum(kinds) == 1
    assert ATTACKS.summary(name).endswith((".", "std."))
    assert dataclasses.replace(attack) == attack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_a_vector_has_the_shape_and_type_of_the_honest_one(name, dtype):
    honest = gaussian_rows(12, 33).to(dtype)
    sent = vector(ATTACKS.build(name, ""), honest[0], knows(honest))
    assert (sent.shape, sent.dtype) == (honest[0].shape, dtype)


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_inputs_are_not_modified(name):
    honest, own = gaussian_rows(12, 33), gaussian_rows(1, 33, seed=1)[0]
    kept = honest.clone(), own.clone()
    vector(ATTACKS.build(name, ""), own, knows(honest)).fill_(7)
    assert torch.equal(honest, kept[0])
    assert torch.equal(own, kept[1])


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_an_attack_is_a_function_of_what_it_is_given(name):
    attack, honest = ATTACKS.build(name, ""), gaussian_rows(12, 33)
    first, again = (vector(attack, honest[0], knows(honest, seed=5)) for _ in range(2))
    assert torch.equal(first.nan_to_num(1), again.nan_to_num(1))


@pytest.mark.parametrize("name", sorted(set(GRADIENT_ATTACKS) - {"composite"}))
def test_attackers_with_a_random_attack_send_distinct_vectors(name):
    # Of `composite` a part of the attackers may take a step that the others do not.
    attack, honest = ATTACKS.build(name, ""), gaussian_rows(12, 33)
    seen = [knows(honest, rank=rank, seed=rank) for rank in range(3)]
    sent = [vector(attack, honest[0], one).nan_to_num(1) for one in seen]
    pairs = itertools.combinations(sent, 2)
    assert [torch.equal(a, b) for a, b in pairs] == [name not in RANDOM] * 3


@pytest.mark.parametrize("name", sorted(set(GRADIENT_ATTACKS) - {"non_finite"}))
def test_only_one_attack_is_provably_invalid(name):
    honest = 1e6 * gaussian_rows(12, 33)
    assert bool(vector(ATTACKS.build(name, ""), honest[0], knows(honest)).isfinite().all())


def test_sign_flip():
    assert SignFlip()(ROWS[0], knows()).tolist() == [-10.0, 20.0, -5.0]
    assert SignFlip(scale=1)(ROWS[0], knows()).tolist() == [-1.0, 2.0, -0.5]


def test_uniform_is_not_centred_so_attackers_agree():
    """The mean of u v is 1/4 and of u^2 is 1/3: a cosine of 3/4, and a norm of sqrt(d / 3)."""
    own = torch.zeros(40_000)
    a, b = (Uniform()(own, knows(seed=seed)) for seed in (1, 2))
    assert 0 <= a.min() < 1e-3 < 0.999 < a.max() < 1
    assert float(torch.cosine_similarity(a, b, dim=0)) == pytest.approx(0.75, abs=0.01)
    assert float(a.norm()) == pytest.approx(math.sqrt(40_000 / 3), rel=0.01)


def test_gaussian():
    own = torch.ones(40_000)
    a, b = (Gaussian()(own, knows(seed=seed)) for seed in (1, 2))
    assert float(a.mean()) == pytest.approx(0, abs=4)
    assert float(a.std()) == pytest.approx(200, rel=0.02)
    assert float(torch.cosine_similarity(a, b, dim=0)) == pytest.approx(0, abs=0.02)
    assert float(Gaussian(sigma=2)(own, knows()).std()) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(
    ("n", "f", "z"), [(50, 12, 0.336), (50, 24, 1.426), (15, 3, 0.2104), (25, 11, 1.068), (11, 2, 0.140)]
)
def test_alie_z_max(n, f, z):
    """Baruch et al., 2019: s = floor(n/2 + 1) - m, z_max is the quantile (n - m - s) / (n - m)."""
    s = n // 2 + 1 - f
    assert z_max(n, f) == pytest.approx(z, abs=5e-4)
    assert z_max(n, f) == pytest.approx(statistics.NormalDist().inv_cdf((n - f - s) / (n - f)), abs=1e-12)


@pytest.mark.parametrize(("n", "f"), [(4, 4), (4, 3), (5, 4)])
def test_alie_z_max_of_a_majority_is_infinite(n: int, f: int) -> None:
    assert z_max(n, f) == float("inf")


def test_alie_steps_z_deviations_of_the_population():
    root = math.sqrt(8 / 3)  # of 1, 3, 5
    mean, last = [3.0, -2.0, 1.5], math.sqrt((1 + 2.25 + 6.25) / 3)  # of 0.5, 0, 4
    sent = Alie(z=1.5)(ROWS[0], knows())
    assert sent.tolist() == pytest.approx([mean[0] - 1.5 * root, mean[1], mean[2] - 1.5 * last])
    other_way = Alie(z=-1.5)(ROWS[0], knows())
    assert other_way.tolist() == pytest.approx([mean[0] + 1.5 * root, mean[1], mean[2] + 1.5 * last])


def test_alie_takes_z_max_of_all_workers_and_attackers():
    expected = Alie(z=z_max(15, 3))(ROWS[0], knows())
    assert torch.equal(Alie()(ROWS[0], knows(n=15, f=3)), expected)
    assert not torch.equal(Alie()(ROWS[0], knows(n=25, f=11)), expected)


@pytest.mark.parametrize(("n", "f"), [(10, 2), (14, 2), (15, 1), (10, 1)])
def test_alie_never_sends_the_honest_mean(n, f):
    """Where the paper's formula sees no room it steps 1.5, as the authors' code does."""
    assert z_max(n, f) <= 0
    assert torch.equal(Alie()(ROWS[0], knows(n=n, f=f)), Alie(z=1.5)(ROWS[0], knows()))


def test_alie_of_one_vector_is_refused_and_never_nan():
    """The attack of some released code takes the deviation of one sample divided by 0, and sends NaN."""
    assert bool(Alie(z=1.5)(ROWS[0], knows(ROWS[:1])).isfinite().all())
    assert "needs to know 'colluders'" in why_impossible(Alie(), 15, 3, "own")
    assert "at least 2 vectors" in why_impossible(Alie(), 15, 1, "colluders")
    assert why_impossible(Alie(), 15, 1, "all") is None


@pytest.mark.parametrize(
    ("n", "f", "possible"), [(15, 3, True), (3, 2, False), (4, 3, False), (15, 8, False), (4, 4, False)]
)
def test_alie_without_a_z_max_is_refused(n, f, possible):
    assert (why_impossible(Alie(), n, f, "colluders") is None) == possible
    assert why_impossible(Alie(z=1.0), n, f, "colluders") is None


def test_ipm():
    assert Ipm(epsilon=0.5)(ROWS[0], knows()).tolist() == [-1.5, 1.0, -0.75]


@pytest.mark.parametrize(("n", "f"), [(15, 3), (5, 1), (9, 4)])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_ipm_turns_the_mean_round_if_and_only_if_epsilon_is_large(n, f, factor):
    """Xie et al., 2019: the inner product of both means is negative when eps > (n - f) / f."""
    honest = gaussian_rows(n - f, 50) + 1
    sent = Ipm(epsilon=factor * (n - f) / f)(honest[0], knows(honest, n=n, f=f))
    mean = torch.cat([honest, sent.expand(f, -1)]).mean(dim=0)
    assert (torch.dot(mean, honest.mean(dim=0)) < 0) == (factor > 1)


def test_mimic_copies_the_worker_furthest_out():
    honest = 0.01 * gaussian_rows(12, 20)
    honest[:, 0] += torch.tensor([0.0, 1, 0, 1, 0, 1, 0, -9, 0, 1, 0, 1])
    attack = Mimic()
    sent = [attack(honest[rank], knows(honest, rank=rank, seed=rank)) for rank in range(3)]
    assert all(torch.equal(vector, honest[7]) for vector in sent)


def test_mimic_copies_a_fixed_worker():
    assert torch.equal(Mimic(target=1)(ROWS[0], knows()), ROWS[1])
    assert "there are 12" in why_impossible(Mimic(target=12), 15, 3)
    assert why_impossible(Mimic(target=11), 15, 3) is None


def test_mimic_of_equal_vectors():
    honest = torch.ones(12, 5)
    assert torch.equal(Mimic()(honest[0], knows(honest)), honest[0])


def test_label_flip():
    x, y = torch.ones(4, 2), torch.tensor([0, 3, 4, 9])
    poisoned_x, poisoned_y = LabelFlip().poisons(x, y, 10, generator())
    assert torch.equal(poisoned_x, x)
    assert poisoned_y.tolist() == [9, 6, 5, 0]
    assert y.tolist() == [0, 3, 4, 9]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_coordinate_drop_really_drops(fraction):
    """The attack of some released code masks a copy, and sends the honest vector."""
    own = gaussian_rows(1, 40_000)[0]
    sent = CoordinateDrop(fraction=fraction)(own, knows())
    lost = sent == 0
    assert float(lost.float().mean()) == pytest.approx(fraction, abs=0.01)
    assert torch.equal(sent[~lost], own[~lost])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_non_finite(value):
    sent = NonFinite(value=value)(ROWS[0], knows())
    assert torch.equal(sent.isnan(), torch.full((3,), value == "nan"))
    assert not bool(sent.isfinite().any())
    assert value == "nan" or bool((sent == float(value)).all())


def test_extreme_scale_is_finite_but_its_square_is_not():
    own = torch.tensor([1.0, -2.0, 0.0, 1e20, -1e20])
    sent = ExtremeScale()(own, knows())
    largest = torch.finfo(torch.float32).max
    assert sent[:3].tolist() == pytest.approx([1e30, -2e30, 0.0])
    assert sent[3:].tolist() == [largest, -largest]
    assert not bool((sent * sent).isfinite().all())


def test_subnormal():
    sent = Subnormal()(ROWS[0], knows())
    assert bool(((sent > 0) & (sent < torch.finfo(torch.float32).tiny)).all())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"sign_flip": {"scale": 0.0}}, "positive"),
        ({"sign_flip": {"scale": float("nan")}}, "positive"),
        ({"gaussian": {"sigma": -1.0}}, "positive"),
        ({"ipm": {"epsilon": float("inf")}}, "positive"),
        ({"extreme_scale": {"scale": 0.0}}, "positive"),
        ({"alie": {"z": float("nan")}}, "finite number, 'optimal' or null"),
        ({"mimic": {"target": -1}}, "non-negative"),
        ({"coordinate_drop": {"fraction": 0.0}}, "above 0 and at most 1"),
        ({"coordinate_drop": {"fraction": 1.1}}, "above 0 and at most 1"),
        ({"non_finite": {"value": "none"}}, "one of 'nan', 'inf', '-inf'"),
        ({"subnormal": {"value": 0.0}}, "subnormal"),
        ({"subnormal": {"value": 1e-30}}, "subnormal"),
        ({"alie": {"Z": 1.5}}, "no such field"),
    ],
)
def test_bad_settings(spec, words):
    with pytest.raises(ConfigError, match=words):
        ATTACKS.build(spec, "byzantine.attack")


@pytest.mark.parametrize(
    ("attack", "sight", "words"),
    [
        (Ipm(), "own", "needs to know 'all', and `knows` is 'own'"),
        (Ipm(), "colluders", "needs to know 'all', and `knows` is 'colluders'"),
        (Mimic(), "colluders", "needs to know 'all'"),
        (Ipm(), None, None),
        (Alie(), None, None),
        (Alie(), "all", None),
        (Uniform(), "own", None),
        (Uniform(), "all", None),
        (LabelFlip(), "own", None),
    ],
)
def test_an_attack_that_sees_too_little_is_refused(attack, sight, words):
    reason = why_impossible(attack, 15, 3, sight)
    assert reason is None if words is None else words in reason


def test_an_attack_on_nobody_is_refused():
    assert why_impossible(Ipm(), 3, 3) == "there is no honest worker to look at"
    assert why_impossible(Uniform(), 3, 3) is None


@pytest.mark.parametrize("k", [1, 2, 3, 12])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_the_deviation_has_the_bits_of_torch(k, scale):
    rows = scale * gaussian_rows(k, 1003)
    assert torch.equal(population_deviation(rows), rows.std(dim=0, correction=0))
