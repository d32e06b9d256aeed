"""Ranks whose gradients point against those of the others, on drawn gradients."""

import json

import numpy as np
import pytest

from varangian.torch.opposition import CERTAIN, LEAST, Opposition
from varangian.torch.steps import Step, Suspicion

D = 50
"""Coordinates of drawn gradients."""


def gradients(n, kind, share, seed, steps):
    """Gradients of honest ranks: a common part, whose square is `share` of the noise's, and noise."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(D)
    common *= np.sqrt(D * share) / np.linalg.norm(common)
    scales = rng.gamma(1, 1, D) if kind == "uneven" else np.ones(D)
    own = rng.standard_normal((n, D)) * np.sqrt(2 * share)
    lasting = np.zeros((n, D))
    for step in range(steps):
        noise = rng.standard_normal((n, D)) * scales
        if kind == "heavy":
            noise = rng.standard_t(1.5, (n, D))
        data = 0.0
        if kind == "split":
            data = own
        elif kind == "rotating":
            data = np.roll(own, step // 5, axis=0)
        drawn = noise + common + data
        if kind == "momentum":
            drawn = lasting = 0.9 * lasting + 0.1 * drawn
        yield drawn


def follow(opposition, drawn):
    """The ranks that are named, each with its first step."""
    named = {}
    for step, rows in enumerate(drawn):
        for rank in opposition.see(rows @ rows.T)[1]:
            named.setdefault(rank, step)
    return named


def flipped(drawn, *ranks):
    for rows in drawn:
        rows[[*ranks]] *= -1
        yield rows


@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_sign_is_named_within_five_steps_where_gradients_agree(n, seed):
    named = follow(Opposition(n), flipped(gradients(n, "even", 1.0, seed, 20), n - 1))
    assert named.keys() == {n - 1}
    assert named[n - 1] < 5


@pytest.mark.parametrize(("share", "within"), [(0.3, 20), (0.1, 100)])
def test_a_flipped_sign_is_named_later_where_they_hardly_agree(share, within):
    for seed in range(3):
        named = follow(Opposition(8), flipped(gradients(8, "even", share, seed, within), 3))
        assert named.keys() == {3}


def test_a_sign_that_flips_after_many_sound_steps_is_named_and_two_are():
    opposition = Opposition(8)
    assert follow(opposition, gradients(8, "even", 0.5, 1, 200)) == {}
    named = follow(opposition, flipped(gradients(8, "even", 0.5, 2, 40), 2, 5))
    assert named.keys() == {2, 5}


KINDS = ["even", "uneven", "heavy", "split", "rotating", "momentum"]


def false_alarms(n, kind, share, seeds, steps):
    found = []
    for seed in seeds:
        opposition = Opposition(n, 0.9 if kind == "momentum" else 0.0)
        found.append(follow(opposition, gradients(n, kind, share, seed, steps)))
    return [named for named in found if named]


@pytest.mark.parametrize("kind", KINDS)
def test_honest_ranks_are_not_named(kind):
    assert false_alarms(5, kind, 0.02, range(2), 1000) == []


@pytest.mark.exhaustive  # the quick test above has fewer steps
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [3, 8])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_honest_ranks_are_never_named_in_thousands_of_steps(n, kind, share):
    assert false_alarms(n, kind, share, range(3), 2000) == []


def test_what_has_no_direction_says_nothing():
    opposition = Opposition(4)
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])
    products = rows @ rows.T
    products[1] = products[:, 1] = np.nan
    for _ in range(3 * LEAST):
        agreement, opposed = opposition.see(products)
        assert agreement[0] == agreement[3] == -1
        assert np.isnan([agreement[1], agreement[2]]).all()
        assert opposed == ()
    assert Opposition(1).see(np.ones((1, 1))) == (pytest.approx((np.nan,), nan_ok=True), ())
    assert Opposition(2).see(np.ones((2, 2))) == ((1.0, 1.0), ())


def test_it_goes_on_from_its_state_with_the_same_bits():
    one, other = Opposition(6), Opposition(6)
    follow(one, flipped(gradients(6, "even", 0.3, 1, 7), 1))
    other.restore(json.loads(json.dumps(one.state())))
    for rows in flipped(gradients(6, "even", 0.3, 2, 7), 1):
        assert one.see(rows @ rows.T) == other.see(rows @ rows.T)
    assert one.deviations().tolist() == other.deviations().tolist()
    assert one.deviations()[1] > CERTAIN / 2
    fresh = Opposition(5)
    fresh.restore(one.state())
    assert fresh.state() == Opposition(5).state()


def test_what_was_seen_of_a_rank_goes_with_it_to_its_new_place():
    opposition, suspicion = Opposition(4), Suspicion(4, after=10)
    follow(opposition, flipped(gradients(4, "even", 1.0, 1, 10), 1))
    for at in range(2):
        suspicion.see(Step(at, (1,), None))
    places = [None, 2, 1]
    moved, suspects = opposition.moved(places), suspicion.moved(places)
    assert moved.certain() == [2]
    assert moved.deviations()[1] == opposition.deviations()[2]
    assert moved.deviations()[0] == 0
    assert suspects.see(Step(2, (1,), None)) == []
    ((rank, steps, _),) = suspects.see(Step(2, (2,), None))
    assert (rank, steps) == (2, 3)


def test_a_rank_is_a_suspect_once_it_is_opposed_and_only_then():
    suspicion = Suspicion(3, after=10)
    steps = [Step(place, (), None, opposed=(1,) if place > 1 else ()) for place in range(6)]
    found = [suspicion.see(step) for step in steps]
    assert [len(each) for each in found] == [0, 0, 1, 0, 0, 0]
    ((rank, _, reason),) = found[2]
    assert rank == 1
    assert "against those of the others" in reason
    assert json.loads(steps[2].line())["opposed"] == [1]
    assert steps[2].faulty == {1}


def test_a_rank_that_is_not_finite_in_steps_without_update_is_a_suspect():
    suspicion = Suspicion(2, after=10)
    one = [Step(at, (1,), None, error="Too many.") for at in range(3)]
    found = [suspicion.see(step) for step in one]
    assert found[:2] == [[], []]
    ((rank, steps, reason),) = found[2]
    assert (rank, steps) == (1, 3)
    assert reason.startswith("had a gradient with NaN or infinity")


def test_steps_in_which_most_ranks_are_not_finite_are_nobodys_fault():
    suspicion = Suspicion(3, after=10)
    assert not any(suspicion.see(Step(at, (0, 2), None, error="Too many.")) for at in range(10))
