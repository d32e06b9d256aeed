import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varangian.config.worker_names import default_names
from varangian.registry import ConfigError
from varangian.worker.simulation import availability
from varangian.worker.simulation.availability import (
    AVAILABILITY,
    Alternating,
    Always,
    Churn,
    Diurnal,
    Random,
    WorkerIndex,
)
from varangian.worker.simulation.delays import DELAYS, Constant, Lognormal, NoDelay, Pareto, Steps
from varangian.worker.simulation.timetable import Timetable

MODELS = [Always(), Alternating(), Random(), Diurnal(), Churn()]
RANDOM = [Random(), Diurnal(), Churn()]
LATE = [NoDelay(), Constant(step=0.1), Steps(step=0.1), Lognormal(median=0.2), Pareto(least=0.1)]


def presence(model, worker, rounds, n=10, seed=1):
    return [model.available(WorkerIndex(seed, worker, n), round) for round in range(rounds)]


def lengths(there, which):
    """How long stays (or absences) last, without the first and the last, which may be cut."""
    runs = [(value, len([*group])) for value, group in itertools.groupby(there)]
    return [length for value, length in runs[1:-1] if value == which]


@pytest.mark.parametrize("model", MODELS)
def test_any_order_of_questions_has_the_same_answers(model):
    forwards = presence(model, 3, 60)
    backwards = [model.available(WorkerIndex(1, 3, 10), round) for round in range(59, -1, -1)]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("model", RANDOM)
def test_workers_and_seeds_differ(model):
    seen = {tuple(presence(model, w, 80, seed=s)) for w, s in [(0, 1), (1, 1), (0, 2), (1, 2)]}
    assert len(seen) == 4


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_least_and_the_greatest_draw_are_numbers_between(monkeypatch, bits):
    monkeypatch.setattr(availability, "stream_seed", lambda *purpose: bits)
    assert 0 < WorkerIndex(1, 0, 2).uniform("x") < 1
    for delay in LATE:
        assert 0 <= delay.seconds(WorkerIndex(1, 0, 2), 0) <= 60
    assert isinstance(Diurnal().available(WorkerIndex(1, 0, 2), 0), bool)


def test_always():
    assert all(presence(Always(), 2, 20))


def test_alternating_halves_share_a_period():
    model = Alternating(alpha=0.3, period=10)
    assert presence(model, 2, 20, n=6) == [*[True] * 7, *[False] * 3] * 2
    assert presence(model, 3, 20, n=6) == [*[False] * 7, *[True] * 3] * 2


def test_of_an_odd_number_the_second_half_is_the_larger():
    there = [Alternating().available(WorkerIndex(1, worker, 5), 0) for worker in range(5)]
    assert there == [True, True, False, False, False]


@given(st.floats(0.02, 1), st.integers(1, 12), st.integers(0, 5), st.integers(0, 9))
def test_random_workers_come_at_least_once_in_every_period(chance, period, seed, worker):
    there = presence(Random(chance, period), worker, 60, seed=seed)
    assert all(any(there[start : start + period]) for start in range(60 - period + 1))


def test_random_workers_do_stay_away_for_a_whole_period_less_one():
    there = presence(Random(0.02, 7), 0, 300)
    assert max(lengths(there, False)) == 6


def test_random_workers_come_as_often_as_they_wish_and_have_to():
    rates = [statistics.mean(presence(Random(0.4, 1000), worker, 300)) for worker in range(10)]
    assert statistics.mean(rates) == pytest.approx(0.4, abs=0.03)
    # After a wish, at most E - 1 rounds without: 1 of (1 - (1 - p)^E) / p.
    rates = [statistics.mean(presence(Random(0.1, 5), worker, 300)) for worker in range(10)]
    assert statistics.mean(rates) == pytest.approx(0.1 / (1 - 0.9**5), abs=0.03)


def test_forced_rounds_do_not_fall_together():
    first = [presence(Random(1e-9, 10), worker, 10).index(True) for worker in range(30)]
    assert len(set(first)) > 5


def test_a_day_has_the_same_trace_for_all_at_their_own_hours():
    model = Diurnal(trace=(0.0, 0.0, 1.0), hour=2)
    days = {tuple(presence(model, worker, 12)) for worker in range(20)}
    pattern = [False, False, False, False, True, True] * 3
    assert days == {tuple(pattern[shift : shift + 12]) for shift in (0, 2, 4)}


def test_a_trace_is_chances():
    there = [value for worker in range(10) for value in presence(Diurnal(trace=(0.2, 0.6)), worker, 300)]
    assert statistics.mean(there) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("stay", "away"), [(12.0, 4.0), (3.0, 6.0), (1.2, 1.5), (1.0, 3.0)])
def test_stays_and_absences_last_as_long_as_said(stay, away):
    seen = [presence(Churn(stay, away), worker, 400) for worker in range(20)]
    assert statistics.mean(itertools.chain(*seen)) == pytest.approx(stay / (stay + away), abs=0.05)
    for which, mean in ((True, stay), (False, away)):
        runs = [length for there in seen for length in lengths(there, which)]
        assert statistics.mean(runs) == pytest.approx(mean, rel=0.15)
        # Geometric: of those that last, the rest lasts as long again.
        rest = [length - 2 for length in runs if length > 2]
        if mean > 2:
            assert statistics.mean(rest) == pytest.approx(mean, rel=0.25)


def test_who_leaves_at_once_and_is_back_at_once():
    there = presence(Churn(1.0, 1.0), 0, 20)
    assert there in ([True, False] * 10, [False, True] * 10)


@pytest.mark.parametrize("delay", LATE)
def test_delays_are_pure_and_finite(delay):
    first, again = ([delay.seconds(WorkerIndex(1, 0, 4), round) for round in range(50)] for _ in range(2))
    assert first == again
    assert all(0 <= seconds <= 60 for seconds in first)


def test_chosen_workers_are_ten_times_as_slow():
    delay = Constant(step=0.2, workers=(1, 3))
    assert [delay.seconds(WorkerIndex(1, worker, 5), 7) for worker in range(5)] == [0, 1.8, 0, 1.8, 0]


def test_everybody_takes_a_step_and_a_slow_worker_ten():
    delay = Steps(step=0.05, workers=(1,))
    assert [delay.seconds(WorkerIndex(1, worker, 3), 7) for worker in range(3)] == [0.05, 0.5, 0.05]


@pytest.mark.parametrize(
    ("delay", "quantiles"),
    [
        (Lognormal(median=0.5, sigma=0.8, most=1e9), {0.5: 0.5, 0.8413: 0.5 * 2.7183**0.8}),
        (Pareto(least=0.5, alpha=2.0, most=1e9), {0.5: 0.5 * 2**0.5, 0.96: 2.5}),
    ],
)
def test_quantiles(delay, quantiles):
    drawn = sorted(
        delay.seconds(WorkerIndex(3, worker, 20), round) for worker in range(20) for round in range(400)
    )
    for share, seconds in quantiles.items():
        assert drawn[int(share * len(drawn))] == pytest.approx(seconds, rel=0.06)


@pytest.mark.parametrize("delay", [Lognormal(median=1, sigma=1e6), Pareto(least=1, alpha=1e-6)])
def test_the_longest_delay_is_cut(delay):
    assert max(delay.seconds(WorkerIndex(1, worker, 9), 0) for worker in range(9)) == 60


@pytest.mark.parametrize("make", [Lognormal, Pareto])
def test_only_chosen_workers_are_late(make):
    fields = {"median": 1.0} if make is Lognormal else {"least": 1.0}
    delay = make(**fields, workers=(2,))
    assert [delay.seconds(WorkerIndex(1, worker, 4), 0) > 0 for worker in range(4)] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("registry", "spec", "said"),
    [
        (AVAILABILITY, {"alternating": {"alpha": 1.0}}, "be between 0.1 and 0.9. Found 1.0"),
        (AVAILABILITY, {"alternating": {"alpha": 0.04}}, "be between 0.1 and 0.9. Found 0.04"),
        (AVAILABILITY, {"alternating": {"period": 1}}, "`period` should be at least 2. Found 1"),
        (AVAILABILITY, {"random": {"chance": 0}}, "`chance` should be above 0"),
        (AVAILABILITY, {"random": {"chance": 1.5}}, "`chance` should be between 0 and 1. Found 1.5"),
        (AVAILABILITY, {"random": {"period": 0}}, "`period` should be at least 1. Found 0"),
        (AVAILABILITY, {"diurnal": {"trace": []}}, "`trace` should hold a chance above 0"),
        (AVAILABILITY, {"diurnal": {"trace": [0, 0]}}, "`trace` should hold a chance above 0"),
        (AVAILABILITY, {"diurnal": {"trace": [2]}}, "`trace` should be between 0 and 1. Found 2"),
        (AVAILABILITY, {"diurnal": {"hour": 0}}, "`hour` should be at least 1. Found 0"),
        (AVAILABILITY, {"churn": {"stay": 0.5}}, "`stay` should be at least 1 round. Found 0.5"),
        (AVAILABILITY, {"churn": {"away": float("nan")}}, "`away` should be at least 1 round. Found nan"),
        (AVAILABILITY, "allways", "Did you mean 'always'?"),
        (DELAYS, "constant", "delay.constant.step: is required"),
        (DELAYS, {"steps": {"step": 0}}, "`step` should be a positive number of seconds. Found 0"),
        (DELAYS, {"steps": {"step": 1, "factor": 0}}, "`factor` should be at least 1. Found 0"),
        (DELAYS, {"constant": {"step": 0}}, "`step` should be a positive number of seconds. Found 0"),
        (DELAYS, {"constant": {"step": 1, "factor": 0.5}}, "`factor` should be at least 1. Found 0.5"),
        (DELAYS, {"constant": {"step": 1, "workers": [-1]}}, "numbers from 0. Found -1"),
        (DELAYS, {"lognormal": {"median": 1, "sigma": -1}}, "`sigma` should not be negative"),
        (DELAYS, {"lognormal": {"median": float("inf")}}, "`median` should be a positive number"),
        (DELAYS, {"pareto": {"least": 1, "alpha": 0}}, "`alpha` should be a positive number. Found 0"),
        (DELAYS, {"pareto": {"least": 1, "most": 0}}, "`most` should be a positive number"),
    ],
)
def test_a_model_that_cannot_be(registry, spec, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        registry.build(spec, registry.kind)


@pytest.mark.parametrize("registry", [AVAILABILITY, DELAYS])
def test_every_model_is_written_as_it_is_read(registry):
    needed = {
        "constant": {"step": 1.0},
        "steps": {"step": 1.0},
        "lognormal": {"median": 1.0},
        "pareto": {"least": 1.0},
    }
    for name in registry:
        built = registry.build({name: needed.get(name, {})}, name)
        assert registry.build(registry.spec(built), name) == built


def test_a_timetable_speaks_of_names():
    table = Timetable(
        names=default_names(4),
        seed=1,
        availability=Alternating(period=4),
        delays=Constant(step=1.0, workers=(3,)),
    )
    assert [table.present(round) for round in (0, 1, 2, 3, 4)] == [
        *[("w00", "w01")] * 2,
        *[("w02", "w03")] * 2,
        ("w00", "w01"),
    ]
    assert table.available("w02", 2)
    assert (table.delay("w03", 0), table.delay("w02", 0)) == (9.0, 0.0)
    assert [table.next_round("w00", round, 6) for round in (1, 2, 4)] == [1, 4, 4]
    assert table.next_round("w00", 6, 7) is None
