"""The page of a real run, in a browser, while strangers do their worst at the metrics port."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from tests.browser import Browser, find_browser
from tests.extent import patience

from varangian.config import load
from varangian.launch import run

pytestmark = [pytest.mark.exhaustive, pytest.mark.slow]

SETTINGS = (
    "rounds=150",
    "workers=6",
    "f=1",
    "byzantine={count: 1, attack: sign_flip}",
    "evaluate.every=10",
)
WIDTHS = (1400, 400)


class Crowd:
    """Callers that mean no good, until the run is over."""

    GARBAGE = (
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /state.json HTTP/1.1\r\n" + b"X: " + b"y" * 60_000,
        b"POST /state.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        + b"x" * 60_000,
        b"\x16\x03\x01" + bytes(2000),
        b"GET /state.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
        b"G",
        b"",
    )

    def __init__(self, port):
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(place,)) for place in range(4)]
        self.made = 0
        for thread in self._threads:
            thread.start()

    def _work(self, place):
        open_ones = []
        while not self._over.is_set():
            try:
                one = socket.create_connection(("127.0.0.1", self._port), timeout=1)
                one.settimeout(0.2)
                open_ones.append(one)
                self.made += 1
                one.sendall(self.GARBAGE[(place + self.made) % len(self.GARBAGE)])
            except OSError:
                time.sleep(0.05)
            if len(open_ones) > 100:
                open_ones.pop(0).close()
            time.sleep(0.005)
        for one in open_ones:
            one.close()

    def stop(self):
        self._over.set()
        for thread in self._threads:
            thread.join()


class Going:
    """A run in a thread, with its page."""

    def __init__(self, tmp_path, *settings):
        self.url, self.result, self._said = "", None, threading.Event()
        self._config = load(
            None, [*SETTINGS, f"output={tmp_path / 'runs'}", "server.metrics_port=0", *settings]
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._said.wait(patience(60))

    def _run(self):
        self.result = run(self._config, note=self._note)

    def _note(self, text):
        if found := re.search(r"the page of the run is (http://\S+)", text):
            self.url = found[1]
            self._said.set()

    def end(self):
        self._thread.join(patience(300))
        assert self.result is not None
        return self.result


# asyncio leaves a connection that it accepts while its loop ends to the interpreter, which closes it.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_run_does_not_notice_who_calls(tmp_path):
    expected = run(load(None, [*SETTINGS, "backend=simulate", f"output={tmp_path / 'alone'}"]))
    going = Going(tmp_path)
    crowd = Crowd(int(going.url.rstrip("/").rpartition(":")[2]))
    try:
        result = going.end()
    finally:
        crowd.stop()
    assert crowd.made > 30
    assert (result.outcome, result.rounds, result.digest) == ("finished", 150, expected.digest)


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium")
def test_the_page_during_a_run_and_after_it(tmp_path):
    going = Going(tmp_path, "delays={steps: {step: 0.15, workers: [], factor: 1}}")
    with Browser(tmp_path / "profile") as browser:
        browser.open(going.url)
        # Curves begin with the first round that is done.
        browser.wait("document.querySelector('.chart path.line') !== null")
        look(browser, "running")
        before = browser.ask("document.querySelector('#tiles').textContent")
        browser.wait(f"document.querySelector('#tiles').textContent !== {json.dumps(before)}")
        assert browser.ask("document.querySelector('.dot.connected') !== null")
        assert all(url.startswith(going.url) for url in browser.requests())
        assert browser.complaints() == []
    result = going.end()
    words = [sys.executable, "-m", "varangian", "status", str(result.folder), "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ) as served:
        try:
            url = re.search(r"http://\S+", served.stdout.readline())[0]
            with urllib.request.urlopen(f"{url}state.json") as reply:
                assert json.load(reply)["state"] == "finished"
            with Browser(tmp_path / "profile2") as browser:
                browser.open(url)
                look(browser, "finished")
                assert browser.complaints() == []
                assert all(other.startswith(url) for other in browser.requests())
        finally:
            served.terminate()


def look(browser, state):
    """The page at two widths, light and dark."""
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        for width in WIDTHS:
            browser.size(width, 900)
            assert browser.ask("document.documentElement.scrollWidth") <= width
            assert browser.ask("document.querySelector('#state').textContent") == state
            assert browser.ask("document.querySelectorAll('#rows tr').length") == 6
            assert browser.ask("document.querySelectorAll('.chart path.line').length") >= 1
            names = "[...document.querySelectorAll('.chart, .strip')].every(one => one.ariaLabel)"
            assert browser.ask(names)
