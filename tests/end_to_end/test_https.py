"""The metrics port of `varangian server --certs` as those see it who look from another machine."""

import json
import re
import ssl
import urllib.error
import urllib.request

import pytest
from tests.browser import Browser, find_browser
from tests.end_to_end.kit import PATIENCE, SMALL, Served, eventually

from varangian.protos.identity.bundle import Role

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
SETTINGS = [*SMALL, "rounds=1000000", "aggregator=median", "server.quorum=3"]
TOKEN = "0123456789abcdef"
NAMES = [f"w0{i}" for i in range(5)]


class Cluster:
    """A server with certificates, its five workers, and whoever looks at its metrics port."""

    def __init__(self, started, folder, *, token=True):
        from varangian.pki.authority import Authority

        self.started, self.path = started, folder / "ca"
        authority = Authority.create(self.path, days=30)
        authority.issue("server", Role.SERVER, hosts=["127.0.0.1"], days=2)
        authority.issue("alice", Role.OPERATOR, days=10)
        for name in NAMES:
            authority.issue(name, Role.WORKER, days=2 if name == "w01" else 10)
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        certs = "--certs", str(self.path / "server")
        shown = [f"server.metrics_token={folder / 'token'}"] if token else []
        served = Served(
            started(
                *("server", *SETTINGS, *certs, "--bind", "127.0.0.1:0", "--format", "json"),
                *("server.metrics_port=0", "server.metrics_host=0.0.0.0", *shown),
            )
        )
        names = [f"--name={name}" for name in NAMES]
        started("worker", *SETTINGS, "--server", served.address(), "--certs", str(self.path), *names)
        page = re.compile(r"the page of the run is https://\S+?:(\d+)")
        assert eventually(lambda: page.search(served.said())), served.said()
        self.url = f"https://127.0.0.1:{page.search(served.said())[1]}/"

    def get(self, path, bundle=None, **headers):
        context = ssl.create_default_context(cafile=self.path / "server" / "ca.pem")
        if bundle is not None:
            context.load_cert_chain(self.path / bundle / "cert.pem", self.path / bundle / "key.pem")
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, context=context, timeout=PATIENCE) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def state(self):
        code, body = self.get("state.json", Authorization=f"Bearer {TOKEN}")
        assert code == 200, body
        return json.loads(body)

    def said(self, *words):
        out, err = self.started(*words).communicate(timeout=PATIENCE)
        return out + err


@pytest.fixture
def cluster(started, tmp_path):
    pytest.importorskip("cryptography")
    return Cluster(started, tmp_path)


def test_who_may_look_and_what_is_said_of_certificates(cluster, monkeypatch, tmp_path):
    assert cluster.get("healthz") == (200, b"ok\n")
    for path in ("state.json", "metrics"):
        assert cluster.get(path)[0] == 401
        assert cluster.get(path, Authorization="Bearer another-token-00")[0] == 401
        assert cluster.get(path, "w00")[0] == 401, "no worker may see whom the rule believes"
        assert cluster.get(path, "alice")[0] == 200
        assert cluster.get(path, Authorization=f"Bearer {TOKEN}")[0] == 200
    assert eventually(lambda: cluster.state()["present"] == 5)
    warnings = cluster.state()["warnings"]
    assert any(text.startswith("The certificate of the server is valid until") for text in warnings)
    assert any(re.match(r"The certificate of w01 ends at .* renew it\.", text) for text in warnings)
    assert cluster.state()["facts"]["revoked certificates"] == "0"
    cluster.said("certs", "revoke", str(cluster.path), "w04")
    assert eventually(
        lambda: any(text.startswith("w04 is left out: ") for text in cluster.state()["warnings"])
    )
    assert cluster.state()["facts"]["revoked certificates"] == "1"
    words = ("status", "--url", cluster.url, "--certs", str(cluster.path / "alice"), "--format", "plain")
    said = cluster.said(*words)
    assert "warning: w04 is left out: " in said
    assert "warning: The certificate of w01 ends at " in said
    monkeypatch.setenv("SSL_CERT_FILE", str(cluster.path / "server" / "ca.pem"))
    words = ("status", "--url", cluster.url, "--token-file", str(tmp_path / "token"), "--format", "plain")
    assert "warning: w04 is left out: " in cluster.said(*words)


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium")
def test_the_page_asks_for_the_token(cluster, tmp_path):
    with Browser(tmp_path / "profile", "--ignore-certificate-errors") as browser:
        browser.open(cluster.url)
        assert browser.ask("document.querySelector('#state').textContent") == "locked"
        assert browser.ask("document.querySelector('main').hidden")
        enter(browser, "another-token-00")
        browser.wait("document.querySelector('#wrong').textContent !== ''")
        assert "not another one" in browser.ask("document.querySelector('#wrong').textContent")
        assert browser.ask("document.querySelector('main').hidden")
        enter(browser, TOKEN)
        browser.wait("!document.querySelector('main').hidden")
        browser.wait("document.querySelectorAll('#rows tr').length === 5")
        assert browser.ask("document.querySelector('#token').hidden")
        browser.wait("document.querySelector('td.soon') !== null")
        warnings = browser.ask("document.querySelector('#warnings').textContent")
        assert "The certificate of w01 ends at" in warnings
        browser.open(cluster.url)
        browser.wait("!document.querySelector('main').hidden")
        assert TOKEN not in browser.ask("location.href + document.documentElement.outerHTML")


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium")
def test_where_certificates_alone_count_the_page_asks_for_no_token(started, tmp_path):
    pytest.importorskip("cryptography")
    cluster = Cluster(started, tmp_path, token=False)
    with Browser(tmp_path / "profile", "--ignore-certificate-errors") as browser:
        browser.open(cluster.url)
        assert browser.ask("document.querySelector('#state').textContent") == "locked"
        assert browser.ask("document.querySelector('#token').hidden")
        said = browser.ask("document.querySelector('#contact').textContent")
        assert "This needs the certificate of an operator" in said


def enter(browser, token):
    """Type a token into the form, and send it."""
    browser.ask("document.querySelector('#secret').focus()")
    browser.call("Input.insertText", text=token)
    browser.press("Enter", "\r")
