"""`varangian report`: files and errors."""

import os

import pytest
from tests.experiments.report.conftest import learning, settings

pytestmark = pytest.mark.usefixtures("small_library")


def test_a_report_is_one_file(varangian, hostile, tmp_path):
    assert varangian("report", str(hostile), "-o", "r.html") == (0, "report: r.html\n", "")
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_settings_choose_among_the_runs(varangian, compared, tmp_path):
    folder = str(compared[0])
    code, out, _ = varangian("report", folder, "aggregator=krum", "-o", "r.html", "byzantine.attack=alie")
    assert (code, out) == (0, "report: r.html\n")
    assert "<dd>aggregator=krum byzantine.attack=alie</dd>" in (tmp_path / "r.html").read_text()
    code, _, err = varangian("report", folder, "f=7")
    assert (code, err) == (1, "varangian: No run has f=7. Values in these runs: 2.\n")
    assert "a report needs runs beside f=7" in varangian("report", "f=7")[2]


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (".", "should be a file, and it is a folder. Write -o report.html"),
        ("there/r.html", "there is no folder"),
    ],
)
def test_where_no_file_can_be(varangian, hostile, out, sentence):
    code, _, err = varangian("report", str(hostile), "-o", out)
    assert code == 1
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written(varangian, hostile, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    code, _, err = varangian("report", str(hostile), "-o", "closed/r.html")
    assert code == 1
    assert "cannot be written" in err


def test_what_cannot_be_read(varangian, tmp_path, write_run):
    code, _, err = varangian("report", "nowhere")
    assert (code, "nowhere should be the folder of a run" in err) == (1, True)
    folder = write_run(tmp_path / "cut", settings(), learning([0.5]))
    records = folder / "rounds.jsonl"
    records.write_bytes(records.read_bytes()[:-9])
    code, _, err = varangian("report", str(folder))
    assert code == 1
    assert f"{records}, line 2, ends half way" in err
    assert not (tmp_path / "report.html").exists()


def test_no_finished_run(varangian, tmp_path, write_run):
    write_run(tmp_path / "run", settings(), learning([0.5]), ended=None)
    code, _, err = varangian("report", "run")
    assert code == 1
    assert "There is no finished run to report" in err
    assert "--follow" in err
    assert not (tmp_path / "report.html").exists()


def test_a_missing_library_names_the_extra(varangian, hostile, monkeypatch):
    from varangian.experiments.report import rendering

    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    code, _, err = varangian("report", str(hostile))
    assert code == 1
    assert "pip install 'varangian[report]'" in err


def test_the_page_is_opened_when_asked(varangian, hostile, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert varangian("report", str(hostile), "--open")[0] == 0
    assert opened == [(tmp_path / "report.html").as_uri()]


def test_a_run_ends_with_its_report(varangian, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, _ = varangian("run", "backend=simulate", "rounds=1", "workers=7", "f=1", "--open")
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert out.splitlines()[-1].split(maxsplit=1) == ["report", f"varangian report runs/{folder.name}"]
    assert opened == [(folder / "report.html").as_uri()]


@pytest.mark.exhaustive
def test_figures_for_a_paper(varangian, compared, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = varangian("report", str(compared[0]), "--figures", "figures")
    assert code == 0
    assert "figures: " in out
    assert (tmp_path / "figures" / "worst_cases.tex").exists()
