"""The record of ranks: read, counted, told and shown."""

import json

import pytest

from varangian.cli.main import main
from varangian.experiments.ranks.read import RanksError, is_record, read
from varangian.torch.steps import Step, appender

ABOUT = {
    "n": 3,
    "f": 1,
    "aggregator": "nnm+trimmed_mean",
    "hosts": ["a", "<b>", "c"],
    "devices": ["cuda:0"] * 3,
}
NAN = float("nan")


@pytest.fixture
def steps(tmp_path):
    """Ten steps in which rank 1 is far four times and dropped once, and one step without an update."""
    path = tmp_path / "steps.jsonl"
    append = appender(path, ABOUT)
    for step in range(10):
        far = 50.0 if step % 2 else 1.0
        dropped = (1,) if step == 8 else ()
        append(Step(step, dropped, None, distances=(1.0, NAN if dropped else far, 1.1), spread=1.0))
    append(Step(10, (0, 1), None, error="2 of 3 rows are provably invalid"))
    return path


def test_a_rank_that_is_wrong_is_named_with_its_host(steps):
    found = read(steps)
    one, none = found.sentences
    assert one.startswith("Rank 1 (host <b>, cuda:0): its gradient was wrong in 7 of 11 steps")
    assert "(not finite 2, far from the update 5), from step 1 to step 10." in one
    assert none == "1 steps have no update; the first is step 10: 2 of 3 rows are provably invalid"
    assert found.ranks[1].distances[1] == pytest.approx(50 / 1.1)
    starts, rows = found.strips()
    assert (len(starts), [len(row) for row in rows]) == (11, [11] * 3)
    assert rows[1][8] is None


def test_a_file_of_two_starts_and_a_line_that_is_cut_off_are_read(steps):
    append = appender(steps, ABOUT)
    append(Step(11, (), (0.5, 0.0, 0.5), distances=(1.0, 1.0, 1.0)))
    with steps.open("a") as file:
        file.write('{"step": 12, "dro')
    found = read(steps)
    assert found.steps == 12
    assert (found.ranks[1].weightless, found.ranks[0].weight) == (1, 0.5)


def test_a_rank_that_points_against_the_others_is_named(steps, tmp_path):
    path = tmp_path / "other.jsonl"
    append = appender(path, ABOUT)
    append(Step(0, (), None, agreement=(0.2, 0.1, NAN)))
    append(Step(1, (), None, agreement=(0.4, 0.1, -0.3), opposed=(2,)))
    found = read(path)
    (sentence,) = found.sentences
    assert sentence.startswith(
        "Rank 2 (host c, cuda:0): its gradient was wrong in 1 of 2 steps (against the"
    )
    assert [rank.agreement for rank in found.ranks] == pytest.approx([0.3, 0.1, -0.3])
    assert read(steps).ranks[0].agreement is None


def test_a_rank_that_an_audit_has_found_is_named_first(steps):
    append = appender(steps, ABOUT)
    append(Step(11, (), None, error="The audit found: rank 2.", accused=(2,)))
    first, second, _ = read(steps).sentences
    assert first == (
        "Rank 2 (host c, cuda:0): it computed wrongly for others in 1 of 12 steps, as an audit found."
    )
    assert second.startswith("Rank 1 (host <b>")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "Found none"),
        ('{"round": 1}\n', "line 1: should say how many ranks there are"),
        ('{"ranks": {"n": -1}}\n', "n should be the number of ranks. Found -1"),
        ('{"ranks": {"n": 2}}\n[]\n', "line 2: should be a JSON object"),
        ('{"ranks": {"n": 2}}\n{"step": "x"}\n', "step should be a number of a step. Found 'x'"),
    ],
)
def test_other_files_are_named(text, rule, tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text(text)
    with pytest.raises(RanksError, match=r"steps\.jsonl") as error:
        read(path)
    assert rule in str(error.value)


def test_numbers_of_any_kind_are_taken(tmp_path):
    path = tmp_path / "steps.jsonl"
    odd = {"step": 0, "dropped": ["x", 99, None], "weights": "no", "distances": [None, 1e400, True]}
    path.write_text(json.dumps({"ranks": {"n": 3, "hosts": [1]}}) + "\n" + json.dumps(odd) + "\n")
    assert read(path).sentences == ["No rank was wrong in 3 or more of 1 steps."]


def test_records_of_runs_are_no_records_of_ranks(tmp_path, steps):
    assert is_record(steps)
    (tmp_path / "config.yaml").write_text("")
    assert not is_record(steps)


def test_the_report_tells_and_shows_it(steps, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(steps), "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Rank 1 (host <b>, cuda:0)")
    page = out.read_text()
    assert "&lt;b&gt;" in page
    assert "<b>," not in page
    assert '<table class="heat strips">' in page
    assert main(["report", str(steps), str(tmp_path), "-o", str(out)]) != 0
