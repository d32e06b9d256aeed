"""A page that is served while its run goes on."""

import html
import http.client
import threading
import urllib.parse

import pytest
from tests.experiments.report.conftest import learning, settings
from tests.extent import patience

from varangian.experiments.report.follow import LivePage, PageServer, follow

pytestmark = pytest.mark.usefixtures("small_library")


@pytest.fixture
def going(tmp_path, write_run):
    """A run that has not ended."""
    return write_run(tmp_path / "run", settings(), learning([0.5, 0.6]), ended=None)


@pytest.fixture
def served(going):
    live = LivePage([str(going)])
    server = PageServer(live)
    server.start()
    yield live, server
    server.close()


def ask(server, *, host=None, path=None, **headers):
    place = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=patience(20))
    given = {"Host": host or place.netloc} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    connection.request("GET", path or place.path, headers=given)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content


def test_a_run_that_goes_on_is_shown_as_far_as_it_is(served):
    answer, content = ask(served[1])
    assert answer.status == 200
    assert "The run goes on: 4 rounds done of 4." in content
    assert 'data-follow="2"' in content
    assert "connect-src 'self'" in html.unescape(content)
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_page_changes_with_the_run(served, going):
    first, _ = ask(served[1])
    tag = first.headers["ETag"]
    assert ask(served[1], If_None_Match=tag)[0].status == 304
    with (going / "metrics.csv").open("a") as file:
        file.write((going / "metrics.csv").read_text().splitlines()[-1].replace("3,", "4,", 1) + "\n")
    answer, content = ask(served[1], If_None_Match=tag)
    assert answer.status == 200
    assert "5 rounds done" in content


def test_another_host_is_refused(served):
    for host in ("evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"):
        answer, content = ask(served[1], host=host)
        assert answer.status == 403
        assert "run" not in content


def test_only_the_page_is_served(served):
    for path in ("/", "/guess/", "/../../etc/passwd"):
        assert ask(served[1], path=path)[0].status == 404


def test_there_is_a_page_before_the_first_evaluation(tmp_path, write_run):
    folder = write_run(tmp_path / "run", settings(), [], ended=None)
    _, content = LivePage([str(folder)]).current()
    assert b"Nothing to show yet" in content


def test_following_says_when_the_run_is_over(tmp_path, write_run):
    folder = write_run(tmp_path / "run", settings(), learning([0.5, 0.6]))
    live = LivePage([str(folder)])
    said = []

    def end(sentence):
        said.append(sentence)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(live, PageServer(live), end, seconds=0.01)
    assert said == ["The runs are over. The page can still be looked at; Ctrl-C ends it."]
    assert not [thread for thread in threading.enumerate() if thread.name == "report"]
    assert b"All runs are over" in live.current()[1]


def test_a_run_that_a_sweep_has_renamed_is_found_again(tmp_path, write_run):
    folder = write_run(tmp_path / "abc.running", settings(), learning([0.5, 0.6]), ended=None)
    live = LivePage([str(folder)])
    folder.rename(tmp_path / "abc")
    assert b"4 rounds done" in live.current()[1]


def test_the_page_stays_while_a_run_cannot_be_read(going):
    live = LivePage([str(going)])
    before = live.current()
    (going / "metrics.csv").write_text("round,accuracy\n0,not a number\n")
    assert live.current() == before
    for path in going.iterdir():
        path.unlink()
    assert live.current() == before
