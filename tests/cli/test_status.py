"""`varangian status`: of a folder, of an address, and what it says when there is nothing to show."""

import http.server
import io
import json
import math
import socket
import threading

import pytest
from rich.console import Console

import varangian as package
from varangian.cli.commands import status
from varangian.cli.views.status import plain_lines, rich_view

STATE = {
    "run": "\x1b[2Jrun",
    "title": "",
    "state": "running",
    "sentence": "round 3: waits",
    "round": 3,
    "rounds": 9,
    "workers_total": 2,
    "scores": {"accuracy": 0.5},
    "workers": [
        {"name": "w00", "state": "connected", "answer": "pushed", "outcome": "counted", "outcome_round": 2,
         "reason": "", "weights": [0.5], "seen_seconds": 0, "certificate_expires": 4e9},
        {"name": "w01", "state": "absent", "answer": "", "outcome": "dropped", "outcome_round": 1,
         "reason": "not finite", "weights": ["dropped"], "seen_seconds": 90, "certificate_expires": None},
    ],
    "refusals": {"AGE": 2},
}  # fmt: skip


@pytest.fixture
def page():
    """A server that answers everything alike; yields its URL and what it was shown."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        answer = (200, json.dumps(STATE).encode())

        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(self.answer[0])
            if self.answer[0] == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(self.answer[1])

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen, Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_newest_run_of_this_folder(varangian, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = varangian("status")
    assert (code, "runs/ should hold run folders" in err) == (1, True)
    result = package.run(rounds=2, workers=4, f=1, backend="simulate", output="runs")
    code, out, _ = varangian("status", "--format", "json")
    state = json.loads(out)
    assert (code, state["run"], state["state"]) == (0, result.folder.name, "finished")
    code, out, _ = varangian("status", str(result.folder), "--watch", "--format", "plain")
    assert (code, out.splitlines()[0]) == (0, f"{result.folder.name} flag: finished")
    code, out, _ = varangian("status", "--format", "rich")
    assert (code, "w03" in out) == (0, True)
    (tmp_path / "runs").rename(tmp_path / "others")
    code, out, err = varangian("status", "others")
    assert (code, out.splitlines()[:1]) == (0, [f"{result.folder.name} flag: finished"]), err


def test_an_address_is_asked_with_its_token(varangian, page, tmp_path):
    url, seen, handler = page
    code, out, _ = varangian("status", "--url", url, "--format", "plain")
    assert code == 0
    assert "\\x1b[2Jrun: running" in out
    assert "w01      absent              dropped in round 1" in out
    assert "refused: AGE 2" in out
    (tmp_path / "token").write_text("0123456789abcdef\n")
    (tmp_path / "token").chmod(0o600)
    code, _, _ = varangian(
        "status", "--url", url, "--token-file", str(tmp_path / "token"), "--format", "rich"
    )
    assert code == 0
    assert seen == [("/state.json", None), ("/state.json", "Bearer 0123456789abcdef")]
    for answer, said in (
        ((401, b"This needs the token\x1b[2J"), "answers 401: This needs the token\\x1b[2J"),
        ((302, b""), "answers 302"),
        ((200, b"[1]"), "should be the state of a run"),
        ((200, b"\xff"), "does not answer"),
        ((200, b"[" * 100_000), "should be the state of a run"),
        ((200, json.dumps({"workers": []}).encode()), "should be the state of a run"),
        *(
            ((200, json.dumps({**STATE, name: value}).encode()), "should be the state of a run")
            for name, value in (
                *(("round", "\x1b[2J"), ("rounds", None), ("workers_total", "9"), ("scores", [1])),
                *(("scores", {"loss": math.nan}), ("refusals", {"AGE": "\x1b[2J"}), ("workers", [7])),
                *(("workers", [{**STATE["workers"][0], "weights": [[1]]}]), ("workers", [{"name": "w00"}])),
                *(("present", "\x1b[2J"), ("warnings", 3)),
            )
        ),
    ):
        handler.answer = answer
        code, _, err = varangian("status", "--url", url)
        assert (code, said in err) == (1, True), err
    assert {path for path, _ in seen} == {"/state.json"}


def test_the_wrong_scheme_is_said(varangian, page):
    url, *_ = page
    code, _, err = varangian("status", "--url", url.replace("http:", "https:"))
    assert (code, "Is it http://" in err) == (1, True), err
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        code, _, err = varangian("status", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert (code, "Is it https://" in err) == (1, True), err


def test_a_server_that_is_watched_may_end(varangian, page, monkeypatch):
    monkeypatch.setattr(status, "PERIOD", 0.0)
    url, seen, handler = page
    answers = [(200, json.dumps({**STATE, "round": round}).encode()) for round in (3, 4)]
    answers.insert(1, (500, b"busy"))
    running = handler.do_GET

    def answer(self):
        self.answer = answers.pop(0) if answers else (503, b"gone")
        running(self)

    monkeypatch.setattr(handler, "do_GET", answer)
    code, out, err = varangian("status", "--url", url, "--watch", "--format", "json")
    assert [json.loads(line)["round"] for line in out.splitlines()] == [3, 4]
    assert (code, "the run is over, or its server has stopped" in err, len(seen)) == (1, True, 8), err


@pytest.mark.parametrize("width", [200, 100, 80, 60, 30])
def test_a_terminal_of_any_width_has_all_that_matters(width):
    names = [f"site-of-a-long-name-{place}" for place in range(2)]
    workers = [
        {**one, "name": name, "weights": [0.5] * 60}
        for name, one in zip(names, STATE["workers"], strict=True)
    ]
    lines = shown({**STATE, "workers": workers, "warnings": ["disk"]}, width).splitlines()
    assert max(map(len, lines)) <= width
    bar = next(place for place, line in enumerate(lines) if "━" in line)
    assert lines[bar].strip("━ ") == ""
    text = "".join(line.strip() for line in lines).replace(" ", "")
    assert all(words in text for words in ("3of9rounds;round3:waits", "warning:disk", "accuracy50.0%"))
    if width >= 60:
        assert all(part in text for part in ("connected", "dropped", "notfinite", "50.0%"))
    if width >= 80:
        assert all(any(name in line for line in lines) for name in names)


def test_bars_of_the_last_rounds_take_the_room_that_is_left():
    state = {
        **STATE,
        "workers": [{**STATE["workers"][0], "certificate_expires": None, "weights": [0.5] * 60}],
    }
    drawn = [sum(letter in "▁▂▃▄▅▆▇█" for letter in shown(state, width)) for width in (200, 80, 40)]
    assert drawn[0] == 24
    assert 24 > drawn[1] > drawn[2] == 0


def shown(state, width):
    """What a terminal of this width shows."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False, color_system=None).print(rich_view(state))
    return out.getvalue()


def test_a_port_that_speaks_something_else_is_said(varangian):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 12)
                connection.sendall(b"\x00\x00\x12\x04\x1b[2J no HTTP/1\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        code, _, err = varangian("status", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert (code, "does not answer" in err, "\x1b" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "http://127.0.0.1:x"), "does not answer"),
        (("--url", "127.0.0.1:9"), "--url should be as http://"),
        (("--url", "file:///etc/passwd"), "--url should be as http://"),
        (("--url", "http://127.0.0.1:9"), "does not answer"),
        (("--server", "http://x"), "--server should be HOST:PORT"),
        (("--server", "127.0.0.1:9", "--timeout", "0.3"), "127.0.0.1:9 does not serve"),
        (("none", "--url", "http://127.0.0.1:9"), "should not be given both"),
        (("none",), "none should be the folder of a run"),
        (("--serve", "0", "--url", "http://127.0.0.1:9"), "--serve shows a run folder"),
    ],
)
def test_what_cannot_be_shown_is_said(varangian, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = varangian("status", *words)
    assert (code, said in err) == (1, True), err


def test_a_port_is_a_number(varangian):
    code, _, err = varangian("status", "--serve", "70000")
    assert (code, "should be a port" in err) == (2, True)


def test_columns_without_anything_are_left_out():
    state = {**STATE, "workers": [{**one, "certificate_expires": None} for one in STATE["workers"]]}
    assert not any("certificate" in line for line in plain_lines(state))
