import pytest

from varangian.aggregators import Aggregator, Krum, Mean, Median
from varangian.aggregators.graphs import (
    AdjacencyFile,
    Complete,
    Exponential,
    Halton,
    OnePeer,
    RandomRegular,
    Ring,
    problem,
    requires,
)


def test_a_graph_that_will_do():
    assert problem(Exponential(), 16) is None
    assert requires(Exponential(), Aggregator(Krum(f=1), f=1), 16, 1) is None
    assert requires(Ring(), Mean(), 16, 0) is None


def test_no_graph_for_so_few():
    assert problem(Ring(), 1) == "Ring() needs at least 2 workers. Found 1."
    assert requires(Ring(), Mean(), 1, 0) == "Ring() needs at least 2 workers. Found 1."


@pytest.mark.parametrize("n", [12, 24])
def test_the_graph_of_the_papers_code_is_refused(n):
    said = (
        f"Halton(variant='original') is disconnected with n = {n}: nothing that worker 0 sends ever "
        "reaches worker 1. Use exponential or chord, which connect any number of workers."
    )
    assert problem(Halton("original"), n) == said
    assert requires(Halton("original"), Median(), n, 0) == said
    assert problem(Halton(), n) is None


def test_a_worker_that_only_listens_makes_a_graph_disconnected(tmp_path):
    path = tmp_path / "links.txt"
    path.write_text("1 0\n2 0\n1 2\n2 1\n")
    assert "nothing that worker 0 sends ever reaches worker 1." in problem(
        AdjacencyFile(str(path), True), 3
    )
    path.write_text("0 1\n0 2\n1 2\n2 1\n")
    assert "nothing that worker 1 sends ever reaches worker 0." in problem(
        AdjacencyFile(str(path), True), 3
    )


def test_a_neighbourhood_that_is_too_small():
    said = requires(OnePeer(), Aggregator(Krum(f=1), f=1), 16, 1)
    assert "OnePeer() with n = 16 has neighbourhoods that are too small" in said
    assert "worker 0 hears from 1 in round 0, which makes 2 rows" in said
    assert (
        "5 for f = 1, and n is 2. Use a larger degree: random_regular with degree 4, or complete." in said
    )
    assert requires(RandomRegular(4), Krum(f=1), 16, 1) is None


def test_the_smallest_neighbourhood_counts(tmp_path):
    path = tmp_path / "links.txt"
    path.write_text("0 1\n0 2\n0 3\n0 4\n1 2\n1 3\n2 3\n3 4\n")
    assert "worker 4 hears from 2, which makes 3 rows" in requires(AdjacencyFile(str(path)), Median(), 5, 2)
    assert requires(AdjacencyFile(str(path)), Median(), 5, 1) is None


@pytest.mark.parametrize(
    ("n", "f", "advice"),
    [
        (15, 2, "random_regular with degree 6, or complete."),
        (15, 3, "random_regular with degree 8, or complete."),
        (9, 3, "Use complete."),
        (9, 4, "No graph on 9 workers is enough for f = 4: use more workers or a smaller f."),
    ],
)
def test_the_advice_would_help(n, f, advice):
    rule = Krum(f=f)
    assert requires(Ring(), rule, n, f).endswith(advice)
    if "degree" in advice:
        assert requires(RandomRegular(int(advice.split()[3].rstrip(","))), rule, n, f) is None
    elif "complete" in advice:
        assert requires(Complete(), rule, n, f) is None
