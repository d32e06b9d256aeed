"""The rule in the hands of an attacker answers as the server's does."""

import math

import pytest
import torch

from varangian.aggregators import (
    MIXINGS,
    RULES,
    AggregationError,
    Aggregator,
    CenteredClipping,
    Krum,
    Mean,
    TrimmedMean,
    aggregator_from,
)
from varangian.worker.attacks import Alie, Composite, Ipm, Knowledge, LiveRule
from varangian.worker.attacks.mounted import first_memory, stepped

pytestmark = pytest.mark.usefixtures("untouched_generator")

N, F = 15, 3
H = N - F
SETTINGS = {"clipping": {"radius": 30.0}}
MIXING_SPECS = [{name: SETTINGS.get(name, {})} for name in sorted(set(MIXINGS) - {"bucketing"})]


def rows(n=H, d=40, seed=0, scale=1.0):
    return 0.5 + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def live(rule, f=F, **more):
    return LiveRule(aggregator_from(rule, "aggregator", f=f), f, **more)


def asked(rule, t, copies=F, honest=None, scale=1.0):
    """What a probe says of vectors on a line, and the update of the rule with these rows."""
    honest = rows(scale=scale) if honest is None else honest
    base, direction = honest.mean(dim=0), -honest.std(dim=0)
    effect = rule.along(honest, base, direction, copies)(t)
    sent = (base + t * direction).expand(copies, -1)
    update = rule.aggregator(
        torch.cat([honest, sent]),
        honest.mean(dim=0),
        torch.Generator().manual_seed(0),
        blocks=rule.blocks,
    )
    return effect, update, honest.double().mean(dim=0)


@pytest.mark.parametrize("t", [0.3, 1.5, 40.0])
@pytest.mark.parametrize("rule", [*RULES])
@pytest.mark.parametrize("mix", [None, *MIXING_SPECS], ids=str)
def test_a_probe_says_what_the_rule_does(rule, mix, t):
    given = rule if mix is None else {"mix": [mix], "rule": rule}
    effect, update, mean = asked(live(given), t)
    apart = update.vector.double() - mean
    scale = float(mean.square().sum() + apart.square().sum())
    assert effect.deviation == pytest.approx(float(apart.square().sum()), abs=1e-5 * scale)
    assert effect.inner == pytest.approx(float(update.vector.double() @ mean), abs=1e-5 * scale)
    assert effect.honest == pytest.approx(float(mean.square().sum()), rel=1e-5)
    if update.weights is None:
        assert effect.mass is None
    else:
        assert effect.mass == pytest.approx(float(update.weights[H:].sum()), abs=1e-6)


@pytest.mark.parametrize("t", [0.3, 1.5, 40.0])
@pytest.mark.parametrize(
    "rule", ["krum", "nnm+median", "arc+geometric_median", "flag", "bulyan", "centered_clipping", "median"]
)
def test_a_probe_of_a_rule_for_each_block(rule, t):
    effect, update, mean = asked(live({"rule": rule, "per_block": True}, blocks=(25, 14, 1), f=2), t)
    apart = update.vector.double() - mean
    scale = float(mean.square().sum() + apart.square().sum())
    assert effect.deviation == pytest.approx(float(apart.square().sum()), abs=1e-5 * scale)
    assert effect.inner == pytest.approx(float(update.vector.double() @ mean), abs=1e-5 * scale)
    assert effect.honest == pytest.approx(float(mean.square().sum()), rel=1e-5)
    if rule == "krum":
        assert effect.mass == pytest.approx(float(update.weights[H:].sum()), abs=1e-6)


@pytest.mark.parametrize("rule", ["krum", "geometric_median", "trimmed_mean", "nnm+median"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rows_of_any_scale(rule, scale):
    effect, update, mean = asked(live(rule), 2.0, honest=scale * rows())
    expected = float((update.vector.double() - mean).square().sum())
    assert effect.deviation == pytest.approx(expected, rel=1e-4, abs=1e-7 * scale**2)


def test_by_hand():
    """The mean of 1, 3 and t at t = 5 is 3, and the honest mean 2."""
    honest = torch.tensor([[1.0], [3.0]])
    probe = LiveRule(Aggregator(Mean()), 0).along(honest, torch.zeros(1), torch.ones(1), 1)
    assert probe(5.0) == pytest.approx((1.0, 6.0, 4.0, 1 / 3))
    median = LiveRule(Aggregator(TrimmedMean(f=1)), 1).along(honest, torch.zeros(1), torch.ones(1), 1)
    assert median(5.0) == pytest.approx((1.0, 6.0, 4.0, None))


def test_the_whole_rule_answers_as_the_server_does():
    given = torch.cat([rows(), torch.full((F, 40), 9.0)])
    assert torch.equal(live("krum")(given), Aggregator(Krum(f=F))(given).vector)
    split = live({"rule": "krum", "per_block": True}, blocks=(30, 10))(given)
    assert torch.equal(split[:30], live("krum")(given[:, :30]))
    assert torch.equal(split[30:], live("krum")(given[:, 30:]))
    last = torch.full((40,), 2.0)
    clipped = Aggregator(CenteredClipping())(given, last).vector
    assert torch.allclose(live("centered_clipping", reference=last)(given), clipped, atol=1e-6)


def test_the_last_aggregate_is_taken_for_the_mean_of_the_honest():
    given = torch.cat([rows(), torch.full((F, 40), 9.0)])
    expected = Aggregator(CenteredClipping())(given, given[:H].mean(dim=0)).vector
    assert torch.allclose(live("centered_clipping")(given), expected, atol=1e-6)


def test_a_random_mixing_is_averaged_over_draws_that_are_always_the_same():
    rule, honest = live("bucketing+median"), rows()
    lines = [rule.along(honest, honest.mean(dim=0), -honest.std(dim=0), 2) for _ in range(2)]
    assert lines[0](3.0) == lines[1](3.0)
    one, *_ = asked(rule, 3.0, copies=2)
    assert one == lines[0](3.0)
    base, direction = honest.mean(dim=0), -honest.std(dim=0)
    sent = (base + 3 * direction).expand(2, -1)
    drawn = [rule(torch.cat([honest, sent]), torch.Generator().manual_seed(seed)) for seed in range(4)]
    squares = [(vector.double() - honest.double().mean(dim=0)).square().sum() for vector in drawn]
    assert one.deviation == pytest.approx(float(torch.stack(squares).mean()), rel=1e-4)


def test_a_line_without_a_direction_and_honest_vectors_that_agree():
    honest = torch.ones(H, 5)
    for direction in (torch.zeros(5), torch.ones(5)):
        effect = live("krum").along(honest, torch.ones(5), direction, F)(1.0)
        assert effect.deviation == pytest.approx(0, abs=1e-12)


def test_vectors_whose_squares_overflow_float32():
    effect, *_ = asked(live("krum"), 1e20, honest=1e19 * rows())
    assert effect.deviation < 1e41
    assert effect.mass == 0


@pytest.mark.parametrize(
    "attack",
    [
        Composite(steps=("ipm 0.5", "toward 2", "optimal 64")),
        Ipm(epsilon="optimal"),
        Alie(z="optimal"),
    ],
    ids=["composite", "ipm", "alie"],
)
def test_a_run_that_has_diverged_ends_no_search(attack):
    honest = rows()
    honest[1, 2] = torch.inf
    for reference in (None, torch.zeros(40)):
        probe = live("nnm+krum", reference=reference).along(honest, honest[0], honest[2], F)
        assert math.isnan(probe(1.0).deviation)
    knows = Knowledge(honest, H + F, F, 0, 1, torch.Generator(), rows(1)[0], live("nnm+krum"))
    sent, _ = stepped(attack, honest[0], knows, first_memory(attack))
    assert sent is not None


def test_more_attackers_than_were_declared_and_too_few_rows():
    effect, *_ = asked(live("krum"), 0.1, copies=6)
    assert effect.mass is not None
    assert not live("krum").refuses(9)
    assert live("krum").refuses(8)
    with pytest.raises(AggregationError, match="2 f"):
        live("krum").along(rows(5), rows(1)[0], rows(1)[0], 3)
    with pytest.raises(AggregationError, match="2 f"):
        live("krum")(rows(8))


def test_a_rule_of_the_user_that_fails_is_named():
    failing = LiveRule(aggregator_from("tests.worker.test_live_rule:Failing", "aggregator", f=F), F)
    probe = failing.along(rows(), rows(1)[0], rows(1)[0], F)
    with pytest.raises(AggregationError, match=r"test_live_rule:Failing failed: ZeroDivisionError"):
        probe(1.0)


class Failing:
    def requires(self, n, f):
        return None

    def __call__(self, gram):
        return 1 / 0


WEIGHTS = (5.0, 1.0, 2.0, 1.5, 1.0, 3.0, 1.0, 2.0, 1.0, 1.0, 4.0, 1.0, 3.0, 1.0, 2.5)
"""Of twelve honest rows and three of attackers; the three heaviest have 0.4 of the whole."""
WEIGHTED = ["mean", "krum", "median", "trimmed_mean", "geometric_median", "caf", "flag", "nnm+trimmed_mean"]


@pytest.mark.parametrize("t", [0.3, 1.5, 40.0])
@pytest.mark.parametrize("rule", [*WEIGHTED, {"rule": "krum", "per_block": True}], ids=str)
def test_a_probe_of_rows_with_weights(rule, t):
    known = live(rule, blocks=(25, 15), weights=WEIGHTS)
    honest = rows()
    share = torch.tensor(WEIGHTS[:H], dtype=torch.float64)
    mean = share @ honest.double() / share.sum()
    base, direction = honest.mean(dim=0), -honest.std(dim=0)
    effect = known.along(honest, base, direction, F)(t)
    together = torch.cat([honest, (base + t * direction).expand(F, -1)])
    update = known.aggregator(together, mean.float(), blocks=known.blocks, weights=WEIGHTS)
    apart = update.vector.double() - mean
    scale = float(mean.square().sum() + apart.square().sum())
    assert effect.deviation == pytest.approx(float(apart.square().sum()), abs=1e-5 * scale)
    assert effect.inner == pytest.approx(float(update.vector.double() @ mean), abs=1e-5 * scale)
    if update.weights is not None:
        assert effect.mass == pytest.approx(float(update.weights[H:].sum()), abs=1e-6)
    assert torch.allclose(known(together), update.vector, rtol=1e-5, atol=1e-6)


def test_equal_weights_are_none():
    honest = rows()
    for rule in ("nnm+krum", "nnm+median", "trimmed_mean"):
        plain, equal = live(rule), live(rule, weights=(2.0,) * N)
        found = [one.along(honest, honest[0], honest[1], F)(2.0) for one in (plain, equal)]
        assert found[0] == found[1]


def test_attackers_who_send_nothing_take_their_weights_along():
    known = live("trimmed_mean", weights=WEIGHTS)
    honest, sent = rows(), rows(1)
    found = known(torch.cat([honest, sent]), ranks=[2])
    wanted = known.aggregator(torch.cat([honest, sent]), weights=[*WEIGHTS[:H], WEIGHTS[H + 2]])
    assert torch.equal(found, wanted.vector)
    assert known.weights_of(H + F + 1) == (*WEIGHTS, 1.0)


def test_a_rule_that_does_not_hold_by_weight_takes_no_round():
    heavy = (20.0, *WEIGHTS[1:])
    assert not live("median", f=1, weights=WEIGHTS).refuses(N)
    assert live("median", weights=heavy).refuses(N)
