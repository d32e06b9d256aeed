"""Attacks that hide among honest vectors: closed forms against bisection, rules that select them."""

import math
from dataclasses import replace

import pytest
import torch

from varangian.aggregators import Aggregator, Bulyan, Flag, Krum, Median, TrimmedMean, aggregator_from
from varangian.registry import ConfigError
from varangian.worker.attacks import (
    ATTACKS,
    AgrTailored,
    Alie,
    AttackError,
    Copy,
    FlagCollusion,
    Knowledge,
    LiveRule,
    MinMax,
    MinSum,
    OneBlock,
    Sparse,
    StatOpt,
    is_joint,
    sight_of,
    why_impossible,
)
from varangian.worker.attacks.flag_collusion import harm
from varangian.worker.attacks.honest_rows import measure

pytestmark = pytest.mark.usefixtures("untouched_generator")

ROWS = torch.tensor([[1.0, -2.0], [3.0, -2.0], [5.0, -2.0]])  # mean (3, -2), deviation (sqrt(8/3), 0)
DIRECTIONS = ("unit", "std", "sign")
HIDDEN = [
    *(kind(direction=direction) for kind in (MinMax, MinSum, FlagCollusion) for direction in DIRECTIONS),
    *(AgrTailored(against=rule) for rule in ("krum", "multi_krum", "bulyan", "median", "trimmed_mean")),
    *(
        StatOpt(),
        StatOpt(against="krum"),
        Sparse(share=0.2),
        Sparse(share=0.2, optimized=True, signs=False),
    ),
    *(OneBlock(), AgrTailored(), Copy(), Copy(noise=0.1)),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def knows(honest=ROWS, *, n=15, f=3, rank=0, seed=0, model=None, rule=None):
    model = torch.ones(honest.shape[1]) if model is None else model
    known = None if rule is None else LiveRule(rule, f)
    return Knowledge(
        honest=honest, n=n, f=f, rank=rank, round=0, rng=generator(seed), model=model, rule=known
    )


def gaussian_rows(k=12, d=60, shift=0.3, seed=0):
    return torch.randn(k, d, generator=generator(seed)) + shift


def sent_by(attack, honest, **more):
    return attack(honest[0], knows(honest, **more)).double()


def textbook_direction(rows, direction):
    mean = rows.mean(dim=0)
    if direction == "unit":
        return -mean / mean.norm()
    return -mean.sign() if direction == "sign" else -rows.std(dim=0, correction=0)


def bisected(accepted):
    """The largest gamma that is accepted, as the papers search it."""
    low, high = 0.0, 1.0
    while accepted(high):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted(middle) else (low, middle)
    return low


# Min-max and min-sum


def test_min_max_by_hand():
    """The largest distance is 4, and c_i are (-2, 0), (0, 0) and (2, 0).

    Against the deviation the first coordinate falls by at most 2: then the third vector is 4 away. Against
    the signs, p = (-1, 1): (2 + g)^2 + g^2 = 16 gives g = -1 + sqrt(7).
    """
    assert sent_by(MinMax(direction="std"), ROWS).tolist() == pytest.approx([1.0, -2.0])
    step = math.sqrt(7) - 1
    assert sent_by(MinMax(direction="sign"), ROWS).tolist() == pytest.approx([3 - step, -2 + step])


def test_min_sum_by_hand():
    """The outermost vector is 2 from the mean, and so is the one that is sent, in every direction."""
    assert sent_by(MinSum(direction="std"), ROWS).tolist() == pytest.approx([1.0, -2.0])
    step = math.sqrt(2)
    assert sent_by(MinSum(direction="sign"), ROWS).tolist() == pytest.approx([3 - step, -2 + step])
    root = math.sqrt(13)
    assert sent_by(MinSum(), ROWS).tolist() == pytest.approx([3 - 6 / root, -2 + 4 / root])


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("k", [2, 3, 12])
def test_the_closed_forms_are_what_a_bisection_finds(k, direction, scale):
    honest = scale * gaussian_rows(k)
    rows = honest.double() / scale
    mean, towards = rows.mean(dim=0), textbook_direction(rows, direction)
    pairs = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")

    def distances(gamma):
        return (mean + gamma * towards - rows).norm(dim=1)

    gamma = bisected(lambda gamma: distances(gamma).max() <= pairs.max())
    sent = sent_by(MinMax(direction=direction), honest) / scale
    assert sent.sub(mean + gamma * towards).norm() <= 1e-5 * gamma * towards.norm()
    assert float((sent - rows).norm(dim=1).max()) == pytest.approx(float(pairs.max()), rel=1e-5)

    most = pairs.square().sum(dim=1).max()
    gamma = bisected(lambda gamma: distances(gamma).square().sum() <= most)
    sent = sent_by(MinSum(direction=direction), honest) / scale
    assert sent.sub(mean + gamma * towards).norm() <= 1e-5 * gamma * towards.norm()
    assert float((sent - rows).square().sum()) == pytest.approx(float(most), rel=1e-5)


@pytest.mark.parametrize(("block", "part"), [(0, slice(0, 40)), (-1, slice(40, 60)), (1, slice(40, 60))])
def test_one_block_takes_the_whole_deviation_of_min_max(block, part):
    honest = gaussian_rows()
    sent = OneBlock(block=block)(honest[0], replace(knows(honest), blocks=(40, 20))).double()
    rows = honest.double()
    moved = sent - rows.mean(dim=0)
    outside = torch.ones(60, dtype=torch.bool)
    outside[part] = False
    assert torch.allclose(moved[outside], torch.zeros(1, dtype=torch.float64), atol=1e-6)
    towards = -rows.std(dim=0, correction=0)[part]
    assert torch.allclose(moved[part] / towards, (moved[part] / towards).mean(), rtol=1e-4)
    farthest, widest = (sent - rows).norm(dim=1).max(), torch.cdist(rows, rows).max()
    assert float(farthest) == pytest.approx(float(widest), rel=1e-5)


def test_one_block_that_is_not_there_is_refused():
    with pytest.raises(AttackError, match="has 2, from 0 to 1"):
        OneBlock(block=2)(ROWS[0], replace(knows(), blocks=(1, 1)))


def test_blocks_of_columns_change_nothing(monkeypatch):
    honest = gaussian_rows()
    whole = [sent_by(attack, honest) for attack in (MinMax(), MinSum(direction="std"), FlagCollusion())]
    monkeypatch.setattr("varangian.worker.attacks.honest_rows.COLUMNS", 7)
    parts = [sent_by(attack, honest) for attack in (MinMax(), MinSum(direction="std"), FlagCollusion())]
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(whole, parts, strict=True))


# AGR-tailored


def selected(rule, honest, sent, f):
    """The rows of the attackers that a rule selects, from their weights."""
    rows = torch.cat([honest.double(), sent.expand(f, -1)])
    return int((Aggregator(rule)(rows).weights[-f:] > 0).sum())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("against", "rule"), [("krum", Krum(f=3)), ("multi_krum", Krum(f=3, select="max"))]
)
def test_agr_tailored_is_selected_by_krum_and_no_further_vector_is(against, rule, direction):
    honest = gaussian_rows()
    wanted = 1 if against == "krum" else 3
    sent = sent_by(AgrTailored(against=against, direction=direction), honest)
    assert selected(rule, honest, sent, 3) == wanted
    mean = honest.double().mean(dim=0)
    assert float((sent - mean).norm()) > 0.5 * float((honest - mean).norm(dim=1).min())
    assert selected(rule, honest, mean + 1.02 * (sent - mean), 3) < wanted


def test_agr_tailored_survives_the_selection_of_bulyan():
    honest, rule = gaussian_rows(13), Bulyan(f=3)
    sent = sent_by(AgrTailored(against="bulyan"), honest, n=16)
    mean = honest.double().mean(dim=0)

    def survivors(vector):
        # Rows of Bulyan's first stage, from the textbook: Krum's choice, one after the other.
        left = [*honest.double(), *[vector] * 3]
        found = 0
        for _ in range(16 - 2 * 3):
            points = torch.stack(left)
            squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
            scores = squares.sort(dim=1).values[:, 1 : 1 + max(1, len(left) - rule.f - 2)].sum(dim=1)
            found += left.pop(int(scores.argmin())) is vector
        return found

    assert survivors(sent) == 3
    assert survivors(mean + 1.02 * (sent - mean)) < 3


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(f=3)], ids=["median", "trimmed_mean"])
def test_agr_tailored_moves_coordinatewise_rules_as_far_as_any_strength_does(rule):
    honest = gaussian_rows(shift=1.5)
    mean = honest.mean(dim=0)
    sent = AgrTailored()(honest[0], knows(honest, rule=Aggregator(rule)))

    def deviation(vector):
        update = Aggregator(rule)(torch.cat([honest, vector.expand(3, -1)])).vector
        return float((update - mean).norm())

    found = deviation(sent)
    assert found >= max(deviation(mean - gamma * mean) for gamma in (0.1, 0.5, 1, 2, 4, 100)) - 1e-6
    low, high = honest.amin(dim=0), honest.amax(dim=0)
    assert torch.equal(sent, torch.where(mean > 0, low, high)), "no more conspicuous than an honest value"


def test_agr_tailored_takes_the_rule_of_the_run():
    honest, krum = gaussian_rows(), Krum(f=3, convention="byzfl")
    sent = AgrTailored()(honest[0], knows(honest, rule=Aggregator(krum))).double()
    assert selected(krum, honest, sent, 3) == 1
    assert torch.equal(AgrTailored()(honest[0], knows(honest)), honest.double().mean(dim=0).float()), (
        "a round without an update has no rule"
    )


@pytest.mark.parametrize("spec", ["geometric_median", "flag", "nnm+trimmed_mean"])
def test_agr_tailored_asks_any_other_rule(spec):
    honest, rule = gaussian_rows(), aggregator_from(spec, "", f=3)
    sent = AgrTailored(direction="std")(honest[0], knows(honest, rule=rule))

    def deviation(vector):
        update = rule(torch.cat([honest, vector.expand(3, -1)])).vector
        return float((update - honest.mean(dim=0)).norm())

    others = (MinMax(direction="std"), MinSum(direction="std"), Alie(z=0.3), Alie(z=1.5))
    assert deviation(sent) >= 0.99 * max(deviation(other(honest[0], knows(honest))) for other in others)


@pytest.mark.parametrize(
    ("against", "n", "words"), [("krum", 8, "2 f [+] 3, 9"), ("bulyan", 14, "4 f [+] 3, 15")]
)
def test_agr_tailored_needs_a_rule_with_a_promise(against, n, words):
    reason = why_impossible(AgrTailored(against=against), n, 3)
    assert words.replace("[+]", "+") in reason
    assert why_impossible(AgrTailored(against=against), n + 1, 3) is None


# STAT-OPT


def test_stat_opt_is_selected_by_krum():
    """The first lambda, halved again and again, that Krum selects among the copies."""
    honest = gaussian_rows(d=200, shift=0.02)
    sent = sent_by(StatOpt(against="krum"), honest)
    mean = honest.double().mean(dim=0)
    strength = float(sent.abs().max())
    assert torch.allclose(sent, -strength * mean.sign())
    assert selected(Krum(f=3), honest, sent, 3) == 1
    assert selected(Krum(f=3), honest, 2 * sent, 3) == 0

    rows = honest.double()
    squares = torch.cdist(rows, rows).square()
    score = float(squares.sort(dim=1).values[:, 1:11].sum(dim=1).min())  # n - f - 2 = 10 neighbours
    first = math.sqrt(score / (8 * 200)) + float(rows.norm(dim=1).max()) / math.sqrt(200)
    halvings = math.log2(first / strength)
    assert halvings == pytest.approx(round(halvings), abs=1e-4)


def test_stat_opt_draws_between_three_and_four_deviations():
    honest = gaussian_rows(d=5000, shift=0.0)
    mean, deviation = honest.mean(dim=0), honest.std(dim=0, correction=0)
    steps = (mean - StatOpt()(honest[0], knows(honest))) / deviation * mean.sign()
    assert float(steps.min()) == pytest.approx(3, abs=0.01)
    assert float(steps.max()) == pytest.approx(4, abs=0.01)
    assert float(steps.mean()) == pytest.approx(3.5, abs=0.02)


def test_stat_opt_is_joint_against_krum_alone():
    assert is_joint(StatOpt(against="krum"))
    assert not is_joint(StatOpt())
    assert "all 12 honest" in why_impossible(StatOpt(against="krum"), 15, 3, "colluders")
    assert why_impossible(StatOpt(), 15, 3, "colluders") is None


# Sparse


def test_sparse_by_hand():
    """The second parameter is the sensitive one: |model mean| is 3, 20 and 0.

    Deviations are sqrt(8/3), sqrt(8/3) and 0; the interquartile range of 8, 10 and 12 is 2, above it.
    """
    honest = torch.tensor([[1.0, -8.0, 4.0], [3.0, -10.0, 4.0], [5.0, -12.0, 4.0]])
    root, model = math.sqrt(8 / 3), torch.tensor([1.0, 2.0, 0.0])
    sent = sent_by(Sparse(share=0.3, scale=2.0, z=1.0), honest, model=model)
    assert sent.tolist() == pytest.approx([3 - root, -10 + 2 * root, 4.0])
    sent = sent_by(Sparse(share=0.3, scale=2.0, z=1.0, signs=False), honest, model=model)
    assert sent.tolist() == pytest.approx([3 - root, -10 - 2 * root, 4.0])


def test_sparse_deviates_by_no_more_than_the_interquartile_range():
    honest = torch.zeros(12, 2)
    honest[0, 0] = 12.0  # a deviation of 3.3, and an interquartile range of 0
    sent = sent_by(Sparse(share=0.5, scale=10.0, z=1.0), honest, model=torch.tensor([1.0, 0.0]))
    assert sent.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("z", [0.0, 0.2, 50.0])
def test_optimized_sparse_has_the_sum_of_distances_of_the_innermost_vector(z):
    honest = gaussian_rows(d=500)
    sent = sent_by(
        Sparse(share=0.02, z=z, optimized=True), honest, model=torch.randn(500, generator=generator(1))
    )
    rows = honest.double()
    least = torch.cdist(rows, rows).square().sum(dim=1).min()
    assert float((sent - rows).square().sum()) == pytest.approx(float(least), rel=1e-5)
    moved = (sent - rows.mean(dim=0)).abs() / rows.std(dim=0, correction=0)
    if z < 1:
        assert float(moved.topk(10).values.min()) > 3 * z, "what is left goes into 10 of 500 parameters"


# Flag collusion


def test_flag_collusion_by_hand():
    """Vectors without a common part: (-1, 0), as long as the longest of them, and no part of the mean."""
    honest = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    assert sent_by(FlagCollusion(), honest).tolist() == pytest.approx([-3.0, 0.0])


@pytest.mark.parametrize("shift", [0.05, 0.3, 1.0])
def test_flag_keeps_the_direction_of_colluders(shift):
    honest, rule = gaussian_rows(d=2000, shift=shift), aggregator_from("flag", "", f=3)
    sent = FlagCollusion()(honest[0], knows(honest, rule=rule))
    found = rule(torch.cat([honest, sent.expand(3, -1)]))
    assert float(found.details["explained_variance"][-1]) > 0.9
    longest = float(honest.norm(dim=1).max())
    assert float(sent.norm()) == pytest.approx(longest, rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("common", [0.05, 0.3, 1.0])
def test_no_hidden_vector_does_as_much_harm_to_flag_as_colluders_do(common, iterations):
    """The way that the update goes down the deviation, less the way that it goes along the mean."""
    honest = gaussian_rows(d=2000, shift=0.0)
    honest += common * torch.randn(2000, generator=generator(1))
    rule = Aggregator(Flag(iterations=iterations), f=3)
    down, mean = -honest.std(dim=0, correction=0), honest.mean(dim=0)

    def harm_of(attack):
        sent = attack(honest[0], knows(honest, rule=rule))
        update = rule(torch.cat([honest, sent.expand(3, -1)])).vector
        return float(update @ down / down.norm() - update @ mean / mean.norm())

    found = harm_of(FlagCollusion())
    others = [MinMax(direction="std"), MinSum(direction="std"), Alie(z=1.5), Alie(z=3.0), Alie()]
    assert found >= max(map(harm_of, others)) - 0.05


def test_the_harm_of_colluders_is_that_of_the_rows():
    """In the space of the Gram matrix and with the rows themselves."""
    honest, rule = gaussian_rows(shift=0.5), Flag()
    rows = measure(honest, "std")
    for coefficients in ((0.0, 1.0), (-0.7, 2.0), (1.5, 0.3)):
        sent = rows.at(coefficients[1], honest[0], coefficients[0])
        update = Aggregator(rule)(torch.cat([honest, sent.expand(3, -1)]).double()).vector
        unit = [part / part.norm() for part in (rows.direction, rows.mean)]
        wanted = float(update @ unit[0] - update @ unit[1])
        assert harm(rule, rows, coefficients, 3) == pytest.approx(wanted, rel=1e-4)


# Copy


def test_copies_are_those_of_different_workers():
    honest = gaussian_rows(2)
    sent = [Copy()(honest[0], knows(honest, rank=rank)) for rank in range(3)]
    assert [torch.equal(vector, honest[place]) for vector, place in zip(sent, (0, 1, 0), strict=True)] == [
        True
    ] * 3
    sent[0].fill_(7)
    assert not bool((honest == 7).any())


def test_noise_hides_a_copy():
    honest = gaussian_rows(d=10_000)
    apart = Copy(noise=0.1)(honest[0], knows(honest)) - honest[0]
    assert float(apart.norm() / honest[0].norm()) == pytest.approx(0.1, rel=0.05)


# All of them


@pytest.mark.parametrize("attack", HIDDEN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "honest",
    [
        *(gaussian_rows(1), gaussian_rows(2), gaussian_rows(12)),
        *(torch.zeros(12, 60), torch.ones(12, 60), gaussian_rows(1).expand(12, -1)),
        *(1e-30 * gaussian_rows(12), 1e30 * gaussian_rows(12), 1e38 * gaussian_rows(12).clamp(-3, 3)),
    ],
    ids=["one", "two", "twelve", "zeros", "ones", "equal", "tiny", "huge", "largest"],
)
def test_a_vector_is_finite_and_within_reach(attack, honest, dtype):
    honest = honest.to(dtype)
    if not bool(honest.isfinite().all()):
        pytest.skip("no such vectors in this type")
    sent = attack(honest[0], knows(honest))
    assert (sent.shape, sent.dtype) == (honest[0].shape, dtype)
    assert bool(sent.isfinite().all())


@pytest.mark.parametrize("attack", [MinMax(), MinSum(), AgrTailored(), StatOpt(), Sparse()], ids=str)
def test_one_vector_has_no_spread_to_hide_in(attack):
    assert "at least 2 vectors" in why_impossible(attack, 3, 2)


def test_an_attack_can_usually_see_more_than_it_needs():
    assert sight_of(MinMax()) == "all"
    assert sight_of(MinMax(), "colluders") == "colluders"
    assert why_impossible(MinMax(), 15, 1) is None
    assert "at least 2 vectors" in why_impossible(MinMax(), 15, 1, "colluders")
    assert "needs to know 'colluders'" in why_impossible(MinMax(), 15, 3, "own")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"min_max": {"direction": "mean"}}, "one of 'unit', 'std', 'sign'"),
        ({"agr_tailored": {"against": "flag"}}, "one of 'krum', 'multi_krum'"),
        ({"stat_opt": {"against": "median"}}, "one of 'krum', 'coordinatewise'"),
        ({"sparse": {"share": 0.0}}, "above 0 and at most 1"),
        ({"sparse": {"scale": -1.0}}, "at least 0"),
        ({"sparse": {"z": float("nan")}}, "at least 0, or null"),
        ({"copy": {"noise": -0.1}}, "at least 0"),
    ],
)
def test_bad_settings(spec, words):
    with pytest.raises(ConfigError, match=words):
        ATTACKS.build(spec, "byzantine.attack")
