import sys

import pytest

from varangian.aggregators.graphs import Complete, Exponential, OnePeer
from varangian.cli.views.graph_plot import groups

PNG = b"\x89PNG\r\n\x1a\n"


def figures(out):
    """The table of one graph as a mapping."""
    pairs = (line.strip().split("   ", 1) for line in out.splitlines() if line.startswith("  "))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_the_figures_of_one_graph(varangian):
    code, out, err = varangian("graph", "exponential", "-n", "16")
    assert (code, err) == (0, "")
    assert out.startswith("exponential on 16 workers\n")
    assert figures(out) == {
        "each hears from": "4 in a round",
        "messages in a round": "64",
        "pushes to a server": "5 of 16 workers in a round",
        "period": "1 round",
        "1 - rho": "0.400000",
        "1 - sigma_2": "0.400000",
        "doubly stochastic": "yes",
        "exact average": "never, only ever closer",
    }


def test_the_figures_of_a_graph_that_changes(varangian):
    found = figures(varangian("graph", "one_peer", "-n", "16")[1])
    assert found["period"] == "4 rounds"
    assert found["1 - rho"] == "1.000000 over a period"
    assert found["exact average"] == "after 4 rounds"


def test_a_graph_with_fields(varangian):
    code, out, _ = varangian("graph", "{random_regular: {degree: 3}}", "-n", "12")
    assert code == 0
    assert out.startswith("random_regular on 12 workers")
    assert figures(out)["each hears from"] == "3 in a round"


def test_a_graph_that_is_unequal(varangian, tmp_path):
    (tmp_path / "links.txt").write_text("0 1\n1 2\n2 0\n0 2\n")
    code, out, _ = varangian("graph", "{file: {path: links.txt, directed: true}}", "-n", "3")
    assert code == 0
    assert figures(out)["doubly stochastic"].startswith("no: some workers count for more")
    assert figures(out)["unequal"] == "worker 0 pushes 3 times while 1 does 2"


def test_all_graphs(varangian):
    code, out, err = varangian("graph", "-n", "12")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in out.partition("\n\n")[0].splitlines()[1:]}
    assert lines["one_peer"] == ["1", "12", "4", "0.791", "0.324", "0.791", "-"]
    assert lines["exponential"] == ["4", "48", "1", "0.400", "0.400", "0.400", "-"]
    assert lines["complete"][-1] == "1"
    assert "file" not in lines


def test_a_graph_that_does_not_exist_for_so_few_is_listed_with_the_reason(varangian):
    out = varangian("graph", "-n", "4")[1]
    assert "random_regular   RandomRegular(degree=4, seed=0) needs at least 5 workers. Found 4.\n" in out


def test_a_rule_that_holds_in_every_neighbourhood(varangian):
    code, out, _ = varangian("graph", "exponential", "-f", "1", "--rule", "{mix: [nnm], rule: krum}")
    assert code == 0
    assert "with f = 1: what it asks for is met in every neighbourhood.\n" in out
    out = varangian("graph", "exponential", "--rule", "mean")[1]
    assert "It promises nothing against Byzantine workers." in out


def test_the_rules_that_hold(varangian):
    out = varangian("graph", "exponential", "-n", "16", "-f", "2")[1]
    holding = out.splitlines()[-1].partition(": ")[2].rstrip(".").split(", ")
    assert {"median", "trimmed_mean", "geometric_median"} <= set(holding)
    assert not {"mean", "krum", "bulyan"} & set(holding)
    assert "neighbourhood: none." in varangian("graph", "one_peer", "-f", "9")[1]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (
            ["{halton: {variant: original}}", "-n", "12"],
            2,
            "is disconnected with n = 12: nothing that worker 0",
        ),
        (
            ["one_peer", "-f", "1", "--rule", "krum"],
            2,
            "neighbourhoods that are too small: worker 0 hears from 1",
        ),
        (["hlton"], 2, "Did you mean 'halton'?"),
        (["ring", "--rule", "krun"], 2, "--rule: there is no aggregator of this name"),
        (["{random_regular: {degree: 3}}", "-n", "9"], 2, "needs an even number of workers"),
        (["{file: {path: nowhere.csv}}"], 2, "nowhere.csv cannot be read"),
        (["ring", "-n", "1"], 2, "should be 2 to 1024 workers. Found '1'"),
        (["ring", "-f", "-1"], 2, "should be a whole number, at least 0. Found '-1'"),
        (["-f", "1"], 1, "--png, --rule and -f are for one graph: name it."),
        (["ring", "--png", "no/such/folder.png"], 1, "no/such/folder.png cannot be written: no such file"),
    ],
)
def test_one_clear_sentence(varangian, argv, code, said):
    found, _, err = varangian("graph", *argv)
    assert found == code
    assert said in err


def test_a_picture(varangian, tmp_path):
    code, out, _ = varangian("graph", "one_peer", "-n", "8", "--png", "graph.png")
    assert code == 0
    assert out.endswith("  picture: graph.png\n")
    assert (tmp_path / "graph.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.png"]


def test_a_picture_needs_matplotlib(varangian, monkeypatch):
    monkeypatch.setitem(sys.modules, "varangian.cli.views.graph_plot", None)
    code, _, err = varangian("graph", "ring", "--png", "graph.png")
    assert code == 1
    assert "--png needs matplotlib: install the extra `report`" in err


def test_colours_are_rounds_or_distances():
    assert [*groups(OnePeer(), 16)] == ["round 0, 4, ...", "round 1", "round 2", "round 3"]
    apart = groups(Exponential(), 16)
    assert [*apart] == ["1 apart", "2 apart", "4 apart", "8 apart"]
    assert all(links.sum() == 16 for links in apart.values())
    assert [*groups(Complete(), 16)] == [""]
