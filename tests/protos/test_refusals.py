"""One table of refusals, and a page that is printed from it."""

import pathlib

import pytest
from grpc import StatusCode

from varangian.protos.errors import Refused
from varangian.protos.refusals import Reaction, Refusal, Topic, printed
from varangian.server.transport.refusals import header_text, status_of
from varangian.worker.transport.errors import FailedCall

PAGE = pathlib.Path(__file__).parents[2] / "docs/reference/refusals.md"
CALLS = [refusal for refusal in Refusal if refusal.value.topic is not Topic.CONNECTION]


def test_the_page_is_printed_from_the_table():
    """Run `python -m varangian.protos.refusals docs/reference/refusals.md` after a change."""
    assert printed(PAGE.read_text()) == PAGE.read_text()


def test_one_refusal_alone_spends_one_of_the_f():
    assert [refusal for refusal in Refusal if refusal.spends_f] == [Refusal.UNSOUND]


@pytest.mark.parametrize("refusal", CALLS)
def test_a_refusal_reaches_the_worker_with_its_code_and_says_what_to_do(refusal):
    values = dict.fromkeys(("seconds", "most", "rate"), 7.0)
    refused = Refused(refusal, "Found another.", **values)
    heard = FailedCall(status_of(refusal), refusal.code, header_text(str(refused)), 3)
    assert str(heard) == f"{refusal.sentence.format(**values)} Found another. [{refusal.code}]"
    assert (heard.refusal, heard.reaction) == (refusal, refusal.reaction)


@pytest.mark.parametrize(("code", "status"), [("", StatusCode.UNKNOWN), ("NEWER", StatusCode.UNAVAILABLE)])
def test_a_failure_without_a_known_code_is_judged_by_its_status(code, status):
    assert FailedCall(status, code, "", None).reaction is Reaction.RETRY
    assert FailedCall(StatusCode.PERMISSION_DENIED, code, "", None).reaction is Reaction.STOP
