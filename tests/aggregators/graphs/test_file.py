import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from varangian.aggregators.graphs import (
    GRAPHS,
    AdjacencyFile,
    GraphError,
    Ring,
    doubly_stochastic,
    inclusions,
    problem,
)
from varangian.aggregators.graphs.file import BYTES, WORKERS
from varangian.registry import ConfigError

SQUARE = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
AS_CSV = "\n".join(",".join(map(str, row)) for row in SQUARE)


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("links.txt", "# a square\n0 1\n1 2 # half of it\n\n2,3\n 3\t0 \n"),
        ("links.csv", AS_CSV),
        ("links.CSV", "\ufeff" + AS_CSV.replace(",", " , ") + "\n\n"),
        ("links.json", json.dumps(SQUARE, indent=1)),
    ],
)
def test_every_format_gives_the_same_graph(written, name, text):
    graph = GRAPHS.build({"file": {"path": written(name, text)}}, "graph")
    assert np.allclose(graph.weights(4, 0), Ring().weights(4, 0), atol=1e-15)
    assert graph.neighbours(4, 0, 7) == (1, 3)
    assert graph.period(4) == 1


def test_a_link_may_go_one_way(written):
    graph = AdjacencyFile(written("links.txt", "0 1\n1 2\n2 0\n1 0\n"), directed=True)
    assert [graph.neighbours(3, i, 0) for i in range(3)] == [(1, 2), (0,), (1,)]
    assert problem(graph, 3) is None
    assert not doubly_stochastic(graph.weights(3, 0))
    assert inclusions(graph, 3).tolist() == [2, 3, 2]


def test_a_directed_matrix_has_senders_as_rows(written):
    text = "0,1,1\n0,0,1\n1,0,0"
    graph = AdjacencyFile(written("links.csv", text), directed=True)
    assert graph.neighbours(3, 2, 0) == (0, 1)


def test_a_link_to_oneself_says_nothing(written):
    graph = AdjacencyFile(written("links.txt", "0 0\n0 1\n0 1\n"))
    assert np.allclose(graph.weights(2, 0), 0.5)


def test_any_metropolis_graph_is_doubly_stochastic(written):
    @given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7))))
    def check(links):
        graph = AdjacencyFile(written("links.txt", "\n".join(f"{i} {j}" for i, j in links)))
        assert doubly_stochastic(graph.weights(8, 0))

    check()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "0 1\n1 two\n", r"a.txt, line 2: should be two numbers.* Found '1 two'"),
        ("a.txt", "0 1 2\n", "a.txt, line 1: should be two numbers"),
        ("a.txt", f"0 {WORKERS}\n", f"each below {WORKERS}"),
        ("a.txt", "0 -1\n", "line 1: should be two numbers"),
        ("a.txt", "0 \u0661\n", "line 1: should be two numbers"),
        ("a.txt", "0 " + "9" * 9999, "line 1: .*'0 9+..."),
        ("a.csv", "0,1\n1,2\n", "a.csv, line 2: column 2 should be 0 or 1. Found '2'"),
        ("a.csv", "0,1\n\n1,0,1\n", "a.csv, line 3: .* Found 3 columns in row 2, and 2 in the first"),
        ("a.csv", "0,1\n1,0\n0,0\n", "a.csv, line 3: should be one of as many rows as columns"),
        ("a.csv", "0,1\n", "at the end: there should be as many rows as columns. Found 1 and 2"),
        ("a.csv", "", "Found 0 and 0"),
        ("a.csv", '0,"1\n', "line 1: is not valid CSV"),
        ("a.csv", "0,1,0\n1,0,1\n1,1,0\n", "line 3: 2 sends to 0, but not 0 to 2. Correct the matrix"),
        ("a.csv", ",".join(["0"] * (WORKERS + 1)), f"at most {WORKERS}"),
        ("a.json", "[[0,1],\n[1,0}", "a.json, line 2: is not valid JSON"),
        ("a.json", '{"0": [1]}', "line 1: should be a list of rows"),
        ("a.json", "[[0,1],3]", "row 2: should be a list of 0 and 1. Found 3"),
        ("a.json", "[[0,true],[1,0]]", "row 1: column 2 should be 0 or 1. Found True"),
        ("a.json", "[[0,1.0],[1,0]]", "row 1: column 2 should be 0 or 1. Found 1.0"),
        ("a.json", "[[" + "1" * 9999 + "]]", "line 1: is not JSON that can be read"),
        ("a.json", "[" * 99999, "line 1: is not"),
        ("a.json", "[]", "Found 0 and 0"),
        ("a.json", "[[]]", "Found 0 columns"),
    ],
)
def test_a_file_that_describes_no_graph(written, name, text, said):
    with pytest.raises(GraphError, match=said):
        AdjacencyFile(written(name, text))


def test_a_file_that_cannot_be_read(written, tmp_path):
    with pytest.raises(ConfigError, match=r"graph.file: nowhere.txt cannot be read: no such file"):
        GRAPHS.build({"file": {"path": "nowhere.txt"}}, "graph")
    (tmp_path / "large.txt").write_bytes(b"\n" * (BYTES + 1))
    with pytest.raises(GraphError, match=f"should hold at most {BYTES} bytes"):
        AdjacencyFile("large.txt")
    (tmp_path / "latin.txt").write_bytes(b"# \xe9\n")
    with pytest.raises(GraphError, match="should be UTF-8 text"):
        AdjacencyFile("latin.txt")


def test_a_file_for_another_number_of_workers(written):
    matrix = AdjacencyFile(written("links.csv", AS_CSV))
    assert problem(matrix, 5) == "links.csv describes 4 workers. Found 5 in this run."
    listed = AdjacencyFile(written("links.txt", "0 1\n1 3\n"))
    said = "links.txt, line 2: there are 3 workers, with numbers from 0. Found 3."
    assert problem(listed, 3) == said
    assert "nothing that worker 0 sends ever reaches worker 2" in problem(listed, 4)
