"""Pictures of runs."""

import json

import pytest

pytest.importorskip("matplotlib")


@pytest.fixture
def runs(tmp_path):
    def written(name, rows):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rounds.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows) + '{"round": 9, "lo'
        )
        return str(folder)

    return written


SCORED = [
    {"round": 0, "loss": None},
    {"round": 1, "loss": 2.0, "train_loss": 1.5, "accuracy": 0.5},
    {"round": 3, "loss": 1.0, "train_loss": 0.5, "accuracy": 0.75},
]


def test_a_picture_of_runs(varangian, runs, tmp_path):
    regression = [{"round": 1, "loss": 0.0, "accuracy": None, "metrics": {"mae": 3.0}}]
    first, second = runs("first", SCORED), runs("second", regression)
    assert varangian("plot", first) == (0, f"picture: {first}/plot.png\n", "")
    assert (tmp_path / "first" / "plot.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = varangian("plot", first, second, "--out", "both.svg")
    assert (code, out) == (0, "picture: both.svg\n")
    text = (tmp_path / "both.svg").read_text()
    assert text.startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.svg", "first", "second"]


@pytest.mark.parametrize(
    ("rows", "arguments", "sentence"),
    [
        ([{"round": 0, "loss": None}], [], "has no evaluation yet"),
        ([[1]], [], "line 1, should be the record of a round"),
        ([{"loss": 1.0}], [], "line 1, should be the record of a round"),
        ([{"round": 1, "metrics": [1]}], [], "has no evaluation yet"),
        (SCORED, ["--out", "there/x.png"], "cannot be written"),
        (SCORED, ["--out", "x.bmpx"], "cannot be written"),
    ],
)
def test_what_cannot_be_drawn(varangian, runs, rows, arguments, sentence):
    code, _, err = varangian("plot", runs("run", rows), *arguments)
    assert code == 1
    assert sentence in err


def test_what_is_no_run(varangian, tmp_path):
    code, _, err = varangian("plot", str(tmp_path / "nothing"))
    assert (code, "should be the folder of a run" in err) == (1, True)
