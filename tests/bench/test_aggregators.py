"""The benchmark measures all there is, and nothing that is wrong. No test here looks at a time."""

import dataclasses
import json
import sys

import pytest
import torch

from varangian.aggregators import RULES, Rows, aggregator_from
from varangian.aggregators.kernels import backend_for
from varangian.bench.aggregators import peers
from varangian.bench.aggregators.cases import MIXED, WITH_FIELDS, Input, Pipeline, case_of, most_byzantine
from varangian.bench.aggregators.gate import check, compare, difference
from varangian.bench.aggregators.report import Copy, Line, Report, Size, Timing
from varangian.bench.aggregators.rich_table import show
from varangian.bench.aggregators.table import grid, remarks
from varangian.bench.aggregators.timing import CallTime, Sample, interleave, timing

SMALL = ["--sizes", "7x2000", "--repeats", "1"]


@pytest.fixture
def bench(varangian):
    return lambda *argv: varangian("bench", "aggregators", *argv)


@pytest.fixture
def wrong_backend(monkeypatch):
    """Every sum of rows is 1 % too long."""
    backend = backend_for(Rows.of(torch.ones(2, 2)))
    combine = backend.combine
    monkeypatch.setattr(backend, "combine", lambda *args: 1.01 * combine(*args))


def row_of(out, name):
    (line,) = [line for line in out.splitlines() if line.split("  ")[0] == name]
    return line.split()


def numbers(bench, *argv):
    code, out, err = bench(*argv, "--format", "json")
    assert err == ""
    return code, json.loads(out)


def test_the_table_is_complete(bench):
    code, out, err = bench("--sizes", "7x2000", "11x2000", "--repeats", "1", "--format", "plain")
    assert code == 0
    for name in ("gram", *RULES, *WITH_FIELDS, *MIXED):
        cells = row_of(out, name)[1:]
        assert len([float(cell) for cell in cells[:7]]) == 7, name  # three of each size, and the error
    assert "7 x 2e3, f = 1" in out
    assert "11 x 2e3, f = 2" in out
    assert f"backend {backend_for(Rows.of(torch.ones(2, 2))).NAME}; float32" in out
    assert "FAILED" not in out + err


def test_a_rule_that_is_wrong_is_not_timed(bench, wrong_backend):
    code, out, err = bench(*SMALL, "--rules", "krum", "median", "--format", "plain")
    assert code == 1
    assert row_of(out, "krum")[1:4] == ["FAILED", "-", "-"]
    assert float(row_of(out, "median")[1]) > 0
    assert "FAILED and not timed: krum, 7 x 2e3: it is off by 1.0e-02 of the reference, and 1e-05" in err


def test_a_backend_that_raises_is_wrong(bench, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("in the kernel")

    monkeypatch.setattr(backend_for(Rows.of(torch.ones(2, 2))), "centred", broken)
    code, out, err = bench(*SMALL, "--rules", "gram", "median", "--format", "plain")
    assert (code, row_of(out, "gram")[1]) == (1, "FAILED")
    assert "ZeroDivisionError: in the kernel" in err


def test_json(bench, tmp_path):
    code, found = numbers(bench, *SMALL, "--rules", "krum,nnm + median", "--json", "out.json")
    assert code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert set(found) == {"schema", "machine", "settings", "sizes", "peers"}
    assert found["schema"] == 1
    assert set(found["machine"]) >= {
        *("cpu", "cores", "threads", "torch", "commit", "load_at_start", "load_at_end")
    }
    assert found["machine"]["threads"] == 1
    assert found["settings"]["rules"] == ["krum", "nnm+median"]
    (size,) = found["sizes"]
    assert (size["n"], size["d"], size["f"]) == (7, 2000, 1)
    assert size["copy"]["bytes_moved"] == 2 * 7 * 2000 * 4
    krum, mixed = size["lines"]
    assert (krum["name"], krum["library"], krum["f"], krum["status"]) == ("krum", "varangian", 1, "timed")
    assert (krum["passes"], mixed["passes"]) == (pytest.approx(1 + 1 / 7), 2)
    assert set(krum["timing"]) == {"wall_ms", "cpu_ms", "wall_x_mean", "cpu_x_mean", "repeats"}
    assert krum["error"] < 1e-5


def test_the_threads_are_as_before(bench):
    assert numbers(bench, *SMALL, "--rules", "mean", "--threads", "2")[1]["machine"]["threads"] == 2
    assert torch.get_num_threads() == 1


def test_a_backend_can_be_insisted_on(bench):
    _, found = numbers(bench, *SMALL, "--rules", "median", "--backend", "blocked")
    assert found["sizes"][0]["backend"] == "blocked"


def test_a_picture(bench, tmp_path):
    pytest.importorskip("matplotlib")
    assert bench(*SMALL, "--rules", "mean", "krum", "--png", "bars.png")[0] == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("cpu", [f"{'x' * length} processor" for length in (1, 20, 37)])
@pytest.mark.parametrize("columns", ["30", "80"])
def test_the_rich_table_has_the_same_cells(cpu, columns, monkeypatch, capsys):
    # The name of the processor decides where a line of a fixed width would be broken.
    monkeypatch.setenv("COLUMNS", columns)
    timing = Timing(wall_ms=1.0, cpu_ms=1.0, wall_x_mean=2.345, cpu_x_mean=2.5, repeats=1)
    line = Line(
        "geometric_median", "varangian", 1, "timed", error=1e-7, timing=timing, passes=2.0, x_floor=1.25
    )
    where = {"cpu": cpu, "threads": 1, "cores": 2, "torch": "2", "load_at_start": 1.5, "load_at_end": 1.6}
    size = Size(7, 2000, 1, "blocked", timing, Copy(1.0, 8, 5.0), (line,))
    report = Report(where, {}, (size, dataclasses.replace(size, n=50)), {"flwr": "not installed"})
    show(report)
    out = capsys.readouterr().out
    for text in (*(cell for row in grid(report).rows for cell in row), *remarks(report)):
        assert text in out


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--sizes", "15"], 2, "should be rows x columns, as 15x1000000, n >= 3. Found '15'."),
        (["--sizes", "2x100"], 2, "n >= 3. Found '2x100'."),
        (["--repeats", "0"], 2, "should be a whole number, at least 1. Found '0'."),
        (["--rules", "krun"], 2, "Did you mean 'krum'?"),
        (["--rules", "krum,nnm"], 2, "write nnm+trimmed_mean"),
        (["--rules", "krum+nnm"], 2, "write nnm+krum"),
        ([*SMALL, "--backend", "abacus"], 1, "There is no backend 'abacus'."),
        (["--json", "nowhere/out.json"], 1, "nowhere/out.json cannot be written: there is no such folder."),
    ],
)
def test_what_cannot_be_done(bench, argv, code, said):
    found, out, err = bench(*argv)
    assert (found, out) == (code, "")
    assert said in err


def test_a_picture_needs_matplotlib(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = bench(*SMALL, "--png", "bars.png")
    assert (code, out) == (1, "")
    assert "--png needs matplotlib: install the extra `report`" in err


def test_peers_that_are_not_installed_are_named(bench, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    code, out, _ = bench(*SMALL, "--rules", "mean", "--peers", "--format", "plain")
    assert code == 0
    for library in ("byzfl", "byzpy", "torchjd", "flwr"):
        assert f"{library}: not installed" in out.splitlines()


@pytest.fixture
def stranger(monkeypatch):
    """A library: a rule that agrees, one that should and does not, one of its own mind, a broken one."""

    def crash(rows):
        raise RuntimeError("no")

    def rules(n, f):
        yield peers.Peer("Mean", "mean", lambda rows: rows.mean(0))
        yield peers.Peer("Median", "median", lambda rows: rows.mean(0))
        yield peers.Peer("Third", "median", lambda rows: rows[2], agrees=False)
        yield peers.Peer("Crash", "median", crash)

    monkeypatch.setattr(peers, "LIBRARIES", {"stranger": rules})
    monkeypatch.setattr(peers, "find_spec", lambda name: object())


@pytest.mark.usefixtures("stranger")
def test_peers_are_checked_and_marked(bench):
    code, found = numbers(bench, *SMALL, "--rules", "mean", "--peers")
    assert code == 0  # what is wrong with others is no failure of ours
    assert found["peers"] == {"stranger": "unknown version"}
    lines = {line["name"]: line for line in found["sizes"][0]["lines"] if line["library"] == "stranger"}
    assert {name: (line["status"], line["verdict"]) for name, line in lines.items()} == {
        "Mean": ("timed", "agrees"),
        "Median": ("failed", None),
        "Third": ("timed", "other convention"),
        "Crash": ("failed", None),
    }
    assert lines["Crash"]["reason"] == "RuntimeError: no"
    assert lines["Third"]["timing"] is not None
    assert lines["Median"]["timing"] is None


@pytest.mark.parametrize("library", ["byzfl", "byzpy", "torchjd", "flwr"])
@pytest.mark.parametrize("n", [7, 12])
def test_installed_peers_agree(library, n):
    present, said = peers.presence(library)
    if not present:
        pytest.skip(f"{library}: {said}")
    given = Input.of(n, 300, seed=1)
    for peer in peers.peers(library, n):
        wanted = aggregator_from(peer.spec, "peer", f=most_byzantine(n))(given.rows.double()).vector
        if peer.agrees:
            assert difference(peer.rule(given.rows.clone()), wanted) < peers.TOLERANCE, peer.name


def test_f_is_the_most_that_a_rule_stands(monkeypatch):
    assert case_of("bulyan", 15).f == most_byzantine(15) == 3
    reason = "it needs more time than there is"
    of_smea = RULES.entry("smea")[0].requires
    monkeypatch.setattr(
        RULES.entry("smea")[0], "requires", lambda self, n, f: reason if self.f > 2 else of_smea(self, n, f)
    )
    assert case_of("smea", 15).f == 2
    monkeypatch.setattr(RULES.entry("smea")[0], "requires", lambda self, n, f: reason)
    assert reason in case_of("smea", 15)


def test_a_rule_that_holds_for_no_f_is_said_to(bench, monkeypatch):
    monkeypatch.setattr(RULES.entry("cge")[0], "requires", lambda self, n, f: "never")
    code, out, _ = bench(*SMALL, "--rules", "cge", "mean", "--format", "plain")
    assert (code, row_of(out, "cge")[1]) == (0, "no")
    assert "cge, 7 x 2e3: CGE(f=0): never" in out.splitlines()


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *(("gram", 1), ("median", 1), ("mean", 1), ("geometric_median", 2), ("nnm+median", 2)),
        *(("krum", 1 + 1 / 11), ("bulyan", 1 + 7 / 11)),
    ],
)
def test_reads_that_cannot_be_spared(name, passes):
    case = case_of(name, 11)
    assert case.passes(Input.of(11, 200, seed=1), None) == pytest.approx(passes)


def test_the_gate_compares_lengths_of_differences():
    wanted = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert compare(wanted.float(), wanted, 1e-5).reason is None
    assert compare(wanted + torch.tensor([0.0, 0.5]), wanted, 0.09).error == pytest.approx(0.1)
    assert compare(wanted * torch.nan, wanted, 1e-5).reason is not None
    assert "shape" in compare(wanted[:1], wanted, 1e-5).reason
    assert difference(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5


def test_the_gate_asks_the_backend_that_is_timed(monkeypatch):
    asked = []
    case = case_of("median", 7)
    of_class = Pipeline.__call__

    def noted(self, given, backend, /):
        asked.append(backend)
        return of_class(self, given, backend)

    monkeypatch.setattr(Pipeline, "__call__", noted)
    assert check(case, Input.of(7, 50, seed=1), "blocked").reason is None
    assert asked == ["blocked", "reference"]


def test_every_call_stands_between_two_of_the_measure():
    calls = []
    timings = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, lambda: calls.append("m"), 2
    )
    assert "".join(calls) == "mab" + 2 * "mambm"
    assert {name: found.repeats for name, found in timings.items()} == {"a": 2, "b": 2}


def test_the_slow_are_not_repeated_for_ever(monkeypatch):
    monkeypatch.setattr("varangian.bench.aggregators.timing.PATIENCE", 0.0)
    assert interleave({"a": lambda: None}, lambda: None, 3)["a"].repeats == 1


def test_ratios_are_to_the_two_calls_about():
    around = [
        Sample(CallTime(1, 2), CallTime(6, 6), CallTime(3, 2)),
        Sample(CallTime(1, 1), CallTime(4, 1), CallTime(1, 1)),
    ]
    found = timing(around)
    assert (found.wall_ms, found.wall_x_mean, found.cpu_x_mean) == (5000, 3.5, 2)
