import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples

from varangian.aggregators.graphs import (
    GRAPHS,
    Chord,
    Complete,
    Exponential,
    GraphError,
    Halton,
    OnePeer,
    RandomRegular,
    Ring,
    averaging,
    cycle,
    disagreement,
    doubly_stochastic,
    exact_period,
    figures,
    gap,
    group,
    inclusions,
    product,
    singular_gap,
    stranger,
    weights_of_period,
)
from varangian.registry import ConfigError

ALWAYS_CONNECTED = [Complete(), Ring(), Exponential(), OnePeer(), Chord(), Halton()]
ANY = st.sampled_from([*ALWAYS_CONNECTED, Halton("original"), RandomRegular(4, seed=3)])


def log2_up(n):
    return math.ceil(math.log2(n))


@given(ANY, st.integers(5, 40), st.integers(0, 100))
def test_weights_are_doubly_stochastic_and_belong_to_the_neighbours(graph, n, t):
    weights = graph.weights(n, t)
    assert weights.shape == (n, n)
    assert weights.dtype == np.float64
    assert doubly_stochastic(weights)
    assert (weights.diagonal() > 0).all()
    for i in range(n):
        assert graph.neighbours(n, i, t) == tuple(j for j in range(n) if weights[i, j] > 0 and j != i)


@given(ANY, st.integers(5, 40), st.integers(0, 50))
def test_a_graph_repeats_itself_after_its_period(graph, n, t):
    assert (graph.weights(n, t) == graph.weights(n, t + graph.period(n))).all()


@pytest.mark.parametrize("graph", ALWAYS_CONNECTED)
def test_is_connected_for_every_number_of_workers(graph):
    assert [n for n in range(2, 130) if stranger(graph, n)] == []


@pytest.mark.parametrize(
    ("graph", "n", "heard_by_seven"),
    [
        (Complete(), 9, (0, 1, 2, 3, 4, 5, 6, 8)),
        (Ring(), 9, (6, 8)),
        (Ring(), 8, (0, 6)),
        (Exponential(), 10, (3, 5, 6, 9)),
        (Chord(), 10, (2, 5, 6)),
        (Halton(), 16, (2, 6, 10, 14)),
        (Halton("original"), 12, (1, 4, 10)),
        (Halton("original"), 8, (0, 2, 5)),
    ],
)
def test_neighbours_worked_out_by_hand(graph, n, heard_by_seven):
    assert graph.neighbours(n, 7, 0) == heard_by_seven


def test_one_peer_takes_its_hops_in_turn():
    assert [OnePeer().neighbours(16, 0, t) for t in range(5)] == [(15,), (14,), (12,), (8,), (15,)]


def test_rows_are_receivers():
    weights = OnePeer().weights(5, 1)
    assert weights[2, 0] == 0.5
    assert weights[0, 2] == 0


@pytest.mark.parametrize("n", range(4, 65, 2))
def test_the_gap_of_the_exponential_graph_for_even_n(n):
    assert gap(Exponential().weights(n, 0)) == pytest.approx(2 / (1 + log2_up(n)), abs=1e-9)


@pytest.mark.parametrize("n", range(5, 65, 2))
def test_the_gap_of_the_exponential_graph_is_larger_for_odd_n(n):
    assert gap(Exponential().weights(n, 0)) > 2 / (1 + log2_up(n)) + 0.05


def test_the_gap_of_the_exponential_graph_for_fifteen():
    assert gap(Exponential().weights(15, 0)) == pytest.approx(0.510, abs=5e-4)


@pytest.mark.parametrize("tau", [1, 2, 3, 4, 5, 6])
def test_one_peer_averages_exactly_over_a_period(tau):
    """ "Exponential Graph is Provably Efficient": any tau consecutive rounds, if n is 2^tau."""
    n = 2**tau
    for first in range(tau):
        mixed = product([OnePeer().weights(n, first + t) for t in range(tau)])
        assert np.abs(mixed - 1 / n).max() == 0
    assert exact_period(OnePeer(), n) == tau


@pytest.mark.parametrize("n", [6, 10, 11, 12, 20, 22, 23, 24, 41, 44, 45, 48])
def test_one_peer_contracts_to_a_fifth_per_period_otherwise(n):
    mixed = product(weights_of_period(OnePeer(), n))
    assert np.linalg.norm(mixed - 1 / n, 2) == pytest.approx(0.21, abs=0.022)
    assert exact_period(OnePeer(), n) is None


def test_chord_has_the_gaps_that_were_computed_for_it():
    assert [round(gap(Chord().weights(n, 0)), 3) for n in (8, 16, 32, 64)] == [0.5, 0.4, 0.333, 0.286]


@pytest.mark.parametrize("n", [4, 8, 16, 32])
def test_chord_is_exponential_for_powers_of_two(n):
    assert (Chord().weights(n, 0) == Exponential().weights(n, 0)).all()


def test_halton_has_the_gaps_that_were_computed_for_it():
    assert [round(gap(Halton().weights(n, 0)), 3) for n in (8, 16, 32, 64)] == [0.5, 0.175, 0.15, 0.037]


def test_halton_as_it_was_falls_apart():
    assert [n for n in range(2, 65) if stranger(Halton("original"), n)] == [12, 24, 40, 48, 56]
    assert gap(Halton("original").weights(12, 0)) == 0


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(2, 12), st.integers(3, 40), st.integers(0, 10))
def test_random_regular_graphs_are_regular_connected_and_go_both_ways(degree, n, seed):
    graph = RandomRegular(degree, seed)
    if n <= degree or n * degree % 2:
        with pytest.raises(GraphError, match=f"needs .*. Found {n}"):
            graph.weights(n, 0)
        return
    links = graph.links(n)
    assert set(links.sum(axis=1)) == {degree}
    assert (links == links.T).all()
    assert not links.diagonal().any()
    assert stranger(graph, n) is None
    assert not links.flags.writeable


def test_a_random_graph_is_a_function_of_its_seed():
    first, again, other = (RandomRegular(3, seed).links(20) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"random_regular": {"degree": 1}}, "`degree` should be at least 2"),
        ({"random_regular": {"seed": -1}}, "`seed` should not be negative"),
        ({"halton": {"variant": "new"}}, "should be one of 'shifted', 'original'"),
        ("exponental", "Did you mean 'exponential'?"),
    ],
)
def test_a_graph_that_cannot_be_named(spec, said):
    with pytest.raises(ConfigError, match=said):
        GRAPHS.build(spec, "graph")


@pytest.mark.parametrize("graph", [*ALWAYS_CONNECTED, RandomRegular(4)])
def test_too_few_workers(graph):
    with pytest.raises(GraphError, match=r"needs at least . workers. Found 1."):
        graph.weights(1, 0)
    with pytest.raises(GraphError):
        figures(graph, 1)


def test_an_odd_number_of_links_has_no_graph():
    with pytest.raises(GraphError, match=r"Found 9. Use degree 2 or 4."):
        RandomRegular(3).weights(9, 0)


def test_metropolis_weighs_by_the_larger_degree():
    star = np.zeros((4, 4), dtype=bool)
    star[0, 1:] = star[1:, 0] = True
    weights = averaging(star)
    assert np.allclose(weights[0], 0.25)
    assert np.allclose(weights[1], [0.25, 0.75, 0, 0])
    assert doubly_stochastic(weights)


def test_links_that_go_one_way_are_averaged_by_the_receiver():
    chain = np.array([[False, False, True], [True, False, False], [True, True, False]])
    weights = averaging(chain)
    assert np.allclose(weights, [[1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert not doubly_stochastic(weights)
    assert gap(weights) != pytest.approx(singular_gap(weights), abs=0.01)


def test_figures_of_a_graph_that_stays():
    found = figures(Exponential(), 16)
    assert (found.n, found.period, found.degree, found.messages) == (16, 1, (4, 4), 64)
    assert found.gap == found.gap_per_round == pytest.approx(0.4)
    assert found.singular_gap == pytest.approx(0.4)
    assert (found.doubly_stochastic, found.connected, found.exact) == (True, True, None)


def test_figures_of_a_graph_that_changes():
    found = figures(OnePeer(), 16)
    assert (found.period, found.degree, found.messages, found.exact) == (4, (1, 1), 16, 4)
    assert found.gap == found.singular_gap == found.gap_per_round == 1
    found = figures(OnePeer(), 12)
    assert found.gap_per_round == pytest.approx(1 - (1 - found.gap) ** 0.25)
    assert found.exact is None


def test_coming_close_is_not_exact():
    """A dense graph is at the average to rounding within a few rounds, and never exactly there."""
    fast = RandomRegular(29, seed=1)
    assert min(disagreement(fast, 32, 30)) < 1e-12
    assert exact_period(fast, 32) is None
    assert exact_period(Complete(), 32) == 1


@pytest.mark.parametrize("graph", [Exponential(), OnePeer(), Ring(), RandomRegular(4), Halton()])
@pytest.mark.parametrize("n", [12, 16])
def test_everybody_is_in_as_many_groups(graph, n):
    groups = [group(graph, n, t) for t in range(cycle(graph, n))]
    counts = np.bincount(np.concatenate(groups), minlength=n)
    assert (counts == inclusions(graph, n)).all()
    assert len(set(counts)) == 1
    assert {len(members) for members in groups} == {len(graph.neighbours(n, 0, 0)) + 1}
    assert group(graph, n, cycle(graph, n) + 3) == groups[3]
