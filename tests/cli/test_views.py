import io
import json
import re

import pytest
from rich.console import Console

from varangian.cli.views.live import Live
from varangian.cli.views.progress import output, progress
from varangian.cli.views.summary import RunSummary, scores_of, summary_lines
from varangian.cli.views.terminal import printable
from varangian.launch import RunResult
from varangian.server.observability.record import RoundRecord, Scores

EVIL = "\x1b[2Jw\n00\u202e"


def record(round, **fields):
    return RoundRecord(**{"round": round, "dropped": {}, "missing": (), "seconds": {}} | fields)


def result(**fields):
    values = {
        "accuracy": 0.975,
        "loss": 0.1,
        "digest": "ab" * 16,
        "rounds": 2,
        "seconds": 1.5,
        "reason": "all 2 rounds are done",
        "outcome": "finished",
    }
    return RunResult(**values | fields)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def a_terminal_of_some_kind(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def shown(kind, records, rounds=2, byzantine=("w01",), **fields):
    out = Terminal() if kind == "rich" else io.StringIO()
    with progress(kind, rounds, byzantine, out, declared=1) as view:
        for each in records:
            view.round(each)
    view.finish(result(**fields))
    return out.getvalue()


RECORDS = [
    record(0, weights={"w00": 0.75, "w01": -0.25}, dropped={"w02": "not finite"}),
    record(
        1,
        weights={"w00": 1.0, "w01": 0.0},
        dropped={"w02": EVIL},
        missing=("w03",),
        loss=0.1,
        accuracy=0.975,
    ),
]


def test_a_tally_of_who_was_believed():
    tally = RunSummary()
    for each in [*RECORDS, record(2, skipped="no quorum")]:
        tally.add(each)
    assert (tally.rounds, tally.skipped, tally.scores) == (3, 1, Scores(0.1, 0.975))
    assert tally.share(["w01"]) == pytest.approx(0.125)
    assert tally.least_believed(1) == [("w01", pytest.approx(0.125))]
    assert dict(tally.drops) == {"w02": 2}
    assert tally.reasons == {"w02": EVIL}
    assert dict(tally.missing) == {"w03": 1}


def test_a_rule_without_weights_believes_nobody_in_particular():
    tally = RunSummary()
    tally.add(record(0))
    assert tally.share(["w00"]) is None
    assert tally.least_believed(3) == []


def test_json_is_one_object_a_line_and_nothing_else():
    first, second, last = map(json.loads, shown("json", RECORDS, loss=float("inf")).splitlines())
    assert (first["round"], second["accuracy"]) == (0, 0.975)
    assert last["result"]["digest"] == "ab" * 16
    assert last["result"]["loss"] is None, "JSON has no infinity"


def test_plain_lines_end_in_a_summary():
    lines = shown("plain", RECORDS).splitlines()
    assert lines[0].startswith("round 2/2  loss 0.1000  accuracy 97.5 %")
    summary = {line[:15].strip(): line[16:] for line in lines[1:]}
    assert summary["accuracy"] == "97.5 %"
    assert summary["byzantine mass"] == "12.5 % of the weight, 1 workers"
    assert summary["dropped w02"].startswith("2 times, last: ")
    assert summary["proven faults"] == "1 worker: f is at least 1, and 1 are declared"
    assert summary["missing w03"] == "1 times"
    assert summary["reason"] == "all 2 rounds are done"


def test_more_proven_faults_than_declared_are_said():
    faults = record(0, dropped={"w01": "not finite", "w02": "not finite"})
    assert "2 workers, more than the declared f = 1: no rule promises anything then" in shown(
        "plain", [faults]
    )


@pytest.mark.parametrize("columns", [80, 160])
def test_the_live_view_cuts_nothing_at_any_width(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    scored = record(
        0,
        loss=0.1,
        accuracy=0.975,
        ema_loss=0.05,
        ema_accuracy=0.98,
        weights={f"w{i:02}": 0.25 for i in range(4)},
        dropped={"w05": "not finite", "w06": "not finite", "w07": "not finite"},
    )
    live = Live(2, ("w01",), output(Terminal()))
    live.round(scored)
    console = Console(width=columns, file=io.StringIO())
    console.print(live._view())
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[0].endswith("  round 1/2  0.0 rounds/s")
    assert lines[1] == "loss 0.1000   accuracy 97.5 %   average 98.0 %"
    assert lines[2].startswith("least believed  w00 25.0 %")
    assert max(map(len, lines)) <= columns
    text = " ".join(lines)
    assert all(word in text for word in ("w05 dropped 1x", "w06 dropped 1x", "w07 dropped 1x"))


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_a_run_without_an_accuracy_has_its_metrics(kind):
    regression = [record(1, loss=0.1, metrics={"mae": 0.25})]
    text = shown(kind, regression, accuracy=None, metrics={"mae": 0.25, "r2": float("nan")})
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "accuracy" not in text
    assert "mae 0.2500" in text
    assert re.search("^mae +0.2500", text, re.MULTILINE)


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_the_average_is_shown_where_there_is_one(kind):
    averaged = [record(1, loss=0.1, accuracy=0.975, ema_loss=0.05, ema_accuracy=0.98125)]
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(kind, averaged, ema_accuracy=0.98125, ema_loss=0.05))
    assert re.search("average +98.1 %" if kind == "plain" else r"average[\s\S]*98\.1 %", text)
    assert re.search("of the average +accuracy 98.1 %, loss 0.0500", text)
    assert "average" not in shown(kind, RECORDS)


def test_plain_tells_of_every_round_without_an_update():
    lines = shown("plain", [record(0, skipped="round 0: too few")]).splitlines()
    assert lines[0] == "round 1/2: no update: round 0: too few"
    assert "2, 1 of them without an update" in "\n".join(lines)


def test_the_end_says_how_old_vectors_were():
    aged = [record(0, ages={"w00": 0, "w01": 3}), record(1, ages={"w00": 0, "w02": 1}), record(2)]
    lines = shown("plain", aged).splitlines()
    assert "ages            mean 1.0 rounds, at most 3" in lines
    assert "ages" not in shown("plain", [*RECORDS, record(2, ages={"w00": 0})])


def test_many_who_are_missing_are_counted_together():
    lines = shown("plain", [record(i, missing=("w01", "w02", "w03", "w04", "w05")) for i in range(2)])
    assert "missing w05     2 times" in lines
    several = ("w00", "w01", "w02", "w03", "w04", "w05")
    lines = shown("plain", [record(0, missing=("w05",)), record(1, missing=several)])
    assert "missing         6 workers, 7 times in all, most of them w05, 2 times" in lines


def test_a_long_plain_run_says_little():
    records = [record(i, loss=1.0, accuracy=0.5) for i in range(1000)]
    lines = [
        line for line in shown("plain", records, rounds=1000).splitlines() if line.startswith("round ")
    ]
    assert 15 <= len(lines) <= 25
    assert lines[-1].startswith("round 1000/1000")


def test_auto_is_live_on_a_terminal():
    assert isinstance(progress("auto", 2, (), Terminal()), Live)


def test_auto_is_plain_where_there_is_no_terminal():
    assert shown("auto", RECORDS).splitlines()[0].startswith("round 2/2")


def test_the_live_view_shows_who_is_distrusted():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown("rich", RECORDS))
    assert "w01 12.5 %" in text
    assert "w02 dropped 2x" in text
    assert "byzantine mass 12.5 % of the weight, 1 workers" in re.sub(" +", " ", text)


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_what_a_worker_says_cannot_steer_the_terminal(kind):
    text = shown(kind, [record(0, skipped=EVIL), *RECORDS], reason=EVIL)
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "w\n00" not in text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain text, ünï €", "plain text, ünï €"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\x7f", "a\\nb\\tc\\x7f"),
        ("\u202e\u2066\ud800", "\\u202e\\u2066\\ud800"),
        ("x" * 201, "x" * 197 + "..."),
        ("\x00" * 10**6, "\\x00" * 49 + "\\..."),
    ],
)
def test_printable(text, safe):
    assert printable(text) == safe


def test_of_many_metrics_the_first_are_shown():
    metrics = {f"class_accuracy_{label}": 0.5 for label in range(40)}
    shown = scores_of(Scores(loss=1.0, metrics=metrics))
    assert shown[-1] == ("and", "34 more metrics")
    assert len(shown) == 8
    assert ("and", "10 more metrics") in summary_lines(result(metrics=metrics), RunSummary(), ())


def test_refusals_of_the_server_are_in_the_end_by_code():
    lines = summary_lines(result(refused={"NUMEL": 3, "STALE": 12}), RunSummary(), ())
    assert ("refused", "NUMEL 3, STALE 12") in lines
    assert "refused" not in dict(summary_lines(result(), RunSummary(), ()))
