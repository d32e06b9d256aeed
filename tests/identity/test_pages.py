"""What the pages say is what the code does."""

import ast
import functools
import pathlib
import re

import pytest
from grpc import StatusCode

from varangian.protos.errors import Code, CodecError
from varangian.server import errors
from varangian.server.identity.sessions import IdentityError, IdentityRefusal
from varangian.server.protocol.events import Refusal
from varangian.worker.transport.errors import ANSWERS, PASSING_CODES, Kind
from varangian.worker.transport.errors import Refusal as Heard

ROOT = pathlib.Path(__file__).parents[2]
SECTIONS = dict(
    re.findall(
        r"^## ([A-Z_]+)\n(.*?)(?=^## |\Z)",
        (ROOT / "docs/reference/refusals.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


def written_out():
    """Answers that belong to no enumeration: their codes are literals where they are made."""
    for path in sorted((ROOT / "server").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "Refused"
                and len(node.args) == 3
            ):
                status, code, _ = node.args
                if isinstance(code, ast.Constant):
                    yield code.value, StatusCode[status.attr]


def of_connections():
    """The codes with which a connection to the data port is closed."""
    for node in ast.walk(ast.parse((ROOT / "server/transport/data_listener.py").read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Unwelcome":
            code = node.args[1]
            yield code.value if isinstance(code, ast.Constant) else "EMFILE"


@functools.cache
def statuses():
    """Every code that a call can be refused with, and its status."""
    refused = [
        *(errors.of_refusal(refusal, 0) for refusal in Refusal),
        *(errors.of_error(CodecError(code, "")) for code in Code),
        *(errors.of_error(IdentityError(code, "")) for code in IdentityRefusal),
    ]
    return {one.code: one.status for one in refused} | dict(written_out())


def test_every_code_has_a_section_and_every_section_a_code():
    assert len(list(written_out())) >= 3
    assert statuses().keys() - SECTIONS.keys() == set(), "give each of these a section"
    assert SECTIONS.keys() - statuses().keys() == set(), "no refusal has these codes any more"


def test_every_code_of_a_closed_connection_is_on_the_page():
    page = (ROOT / "docs/reference/refusals.md").read_text().partition("## Connections to the data port")[2]
    # Who has gone was not refused.
    assert set(re.findall(r"^\| `([A-Z]+)`", page, re.MULTILINE)) == {*of_connections()} - {"GONE"}


@pytest.mark.parametrize("code", SECTIONS)
def test_a_section_says_what_whose_fault_and_what_to_do(code):
    marks = re.findall(r"^- \*\*(.+?):\*\* \S", SECTIONS[code], re.MULTILINE)
    assert marks == ["Status", "Comes from", "Spends one of the f", "What to do"]
    assert f"- **Status:** {statuses()[code].name}\n" in SECTIONS[code]


@pytest.mark.parametrize("code", SECTIONS)
def test_what_is_tried_again_is_what_the_page_says(code):
    said = re.search(r"Tried\s+again: (yes|no)", SECTIONS[code])
    kind = Heard(statuses()[code], code, "", None).kind
    if said:
        assert (kind is Kind.PASSING) is (said[1] == "yes")
    if "pulls the current round" in SECTIONS[code] or "goes on with the\n  next" in SECTIONS[code]:
        assert kind is Kind.ANSWER


def test_what_a_worker_expects_can_come():
    assert statuses().keys() >= (ANSWERS | PASSING_CODES)


@pytest.mark.parametrize("refusal", [*Refusal, *IdentityRefusal])
def test_a_refusal_reaches_the_user_with_its_code(refusal):
    """The sentence leads to the section, whatever it was that was refused."""
    if isinstance(refusal, Refusal):
        refused = errors.of_refusal(refusal, 3)
    else:
        refused = errors.of_error(IdentityError(refusal, "Found another."))
    heard = str(Heard(refused.status, refused.code, refused.sentence, 3))
    assert refusal.value in heard
    assert refusal.name in heard


def functions(path):
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def named(page):
    """The tests that a page names."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text())


PROMISES, CLAIMS = named("docs/security/defences.md"), named("docs/security/encryption.md")


@pytest.mark.parametrize(("path", "name"), sorted({*PROMISES, *CLAIMS}))
def test_every_promise_of_security_has_its_test(path, name):
    assert name in functions(path)


def test_no_promise_is_without_a_test():
    page = (ROOT / "docs/security/defences.md").read_text()
    table = page[page.index("| promise | test |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(PROMISES) >= 30
