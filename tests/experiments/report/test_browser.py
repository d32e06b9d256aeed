"""The page in a browser without a network: charts, keyboard, print, and a run that is followed."""

import pytest
from tests.browser import Browser, find_browser
from tests.experiments.report.conftest import HOSTILE, learning, settings

from varangian.experiments.report.follow import LivePage, PageServer
from varangian.experiments.report.page import write_page
from varangian.experiments.results.read import read_runs

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def study_url(compared, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(read_runs([compared[0]]), path)
    assert path.stat().st_size < 1_500_000
    return path.as_uri()


@pytest.mark.parametrize("width", [1400, 800, 400])
def test_all_charts_are_drawn_within_the_page(browser, study_url, width):
    browser.size(width, 1000)
    browser.open(study_url)
    charts = browser.ask("document.querySelectorAll('.chart').length")
    assert charts > 9
    assert browser.ask("document.querySelectorAll('.chart svg').length") == charts
    assert browser.ask("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('.chart')].filter(chart => {
        const frame = chart.getBoundingClientRect();
        return [...chart.querySelectorAll('text')].some(text => {
            const box = text.getBoundingClientRect();
            const [left, right] = [frame.left - 1, frame.right + 1];
            return box.width && (box.left < left || box.right > right || box.top < frame.top - 1);
        });
    }).map(chart => chart.dataset.description)"""
    assert browser.ask(outside) == []
    assert browser.complaints() == []
    assert all(url == study_url for url in browser.requests())


def test_the_keyboard_sorts_the_table(browser, study_url):
    browser.open(study_url)
    rules = "[...document.querySelectorAll('#worst-cases-table tbody th')].map(cell => cell.textContent)"
    rows = "[...document.querySelectorAll('#worst-cases-table tbody tr')]"
    values = f"{rows}.map(row => +row.children[1].dataset.value)"
    for _ in range(40):
        browser.press("Tab")
        if browser.ask("document.activeElement.textContent") == "no attack":
            break
    assert browser.ask("document.activeElement.matches(':focus-visible')")
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = browser.ask(rules)
    browser.press("Enter", "\r")
    assert browser.ask("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    assert browser.ask(values) == sorted(browser.ask(values), reverse=True)
    browser.press("Enter", "\r")
    assert browser.ask(values) == sorted(browser.ask(values))
    assert sorted(browser.ask(rules)) == sorted(before)


def test_lines_can_be_hidden_and_numbers_shown(browser, study_url):
    browser.open(study_url)
    lines = "document.querySelectorAll('#curves .chart')[0].querySelectorAll('.mark-line path').length"
    assert browser.ask(lines) == 2
    browser.ask("document.querySelector('#curves input').click()")
    browser.wait(f"{lines} === 1")
    browser.ask("document.querySelector('#curves summary').click()")
    browser.wait("document.querySelectorAll('#curves details table tbody tr').length === 12")


def test_the_axis_can_be_fitted_to_the_lines(browser, study_url):
    browser.open(study_url)
    labels = "[...document.querySelectorAll('#curves .chart')[0].querySelectorAll('.role-axis-label text')]"
    whole = f"{labels}.some(text => text.textContent === '100%')"
    assert browser.ask(whole)
    browser.ask("document.querySelector('#curves-fit').focus()")
    browser.press(" ", " ")
    browser.wait(f"!({whole})")
    browser.press(" ", " ")
    browser.wait(whole)
    assert browser.complaints() == []


def test_what_workers_say_does_nothing(browser, hostile, tmp_path):
    path = tmp_path / "report.html"
    write_page(read_runs([hostile]), path)
    browser.open(path.as_uri())
    assert HOSTILE[:8] in browser.ask("document.querySelector('#trust .chart').textContent")
    assert browser.ask("document.querySelectorAll('main img, main iframe').length") == 0
    assert browser.complaints() == []


def test_the_page_prints(browser, study_url, tmp_path):
    browser.open(study_url)
    browser.print(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Image" not in content  # charts are vectors


def test_a_run_that_is_followed_keeps_what_was_chosen(browser, write_run, tmp_path):
    folder = write_run(tmp_path / "run", settings(), learning([0.5, 0.6]), ended=None)
    live = LivePage([str(folder)])
    server = PageServer(live)
    server.start()
    try:
        browser.size(1400, 500)
        browser.open(server.url)
        browser.ask("document.querySelector('#curves details').open = true")
        rows = "document.querySelectorAll('#curves details table tbody tr').length"
        browser.wait(f"{rows} === 2")
        browser.ask("window.scrollTo(0, 600)")
        at = browser.ask("window.scrollY")
        line = (folder / "metrics.csv").read_text().splitlines()[-1]
        with (folder / "metrics.csv").open("a") as file:
            file.write(line.replace("3,", "5,", 1) + "\n")
        browser.wait(f"{rows} === 3")
        assert browser.ask("window.scrollY") == at
        assert browser.ask("document.querySelector('#curves details').open")
        assert "6 rounds done" in browser.ask("document.querySelector('#live').textContent")
    finally:
        server.close()
    browser.wait("document.querySelector('#live').textContent.includes('has ended')")
