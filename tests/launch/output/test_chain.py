"""The chain of a record: what a line carries of the one before it, and what is signed of it."""

import json

import pytest

from varangian.launch.output.chain import Chain, as_document, beginning, digest, head_of, links

RECORD = '{"round": %d, "weights": {"w00": 0.5}}'


class Signer:
    """Signs in clear text."""

    def __init__(self):
        self.name = "first"

    def certificate(self):
        return self.name

    def sign(self, data):
        return digest(data).encode()


def chained(count, signer=None, head="00"):
    chain = Chain(head, signer)
    return [(chain.line(RECORD % round) + "\n").encode() for round in range(count)]


def test_each_line_carries_the_digest_of_the_one_before():
    found = [*links(chained(3))]
    assert [link.round for link in found] == [0, 1, 2]
    assert [link.before for link in found] == ["00", found[0].digest, found[1].digest]
    assert all(link.signature is None and link.certificate is None for link in found)


def test_a_line_is_the_record_with_fields_behind_it():
    (line,) = chained(1)
    assert line.decode().startswith((RECORD % 0)[:-1] + ', "before": "00"')
    assert json.loads(Chain("00").line("{}")) == {"before": "00"}


def test_the_chain_goes_on_behind_a_line_of_another_process():
    lines = chained(2)
    assert chained(3)[2].decode() == Chain(head_of(lines[-1])).line(RECORD % 2) + "\n"


def test_a_signature_is_of_the_line_without_it():
    signer = Signer()
    for link in links(chained(2, signer)):
        assert link.signature == digest(link.signed).encode()
        assert "signature" not in json.loads(link.signed)


def test_a_certificate_stands_where_it_is_new():
    signer = Signer()
    chain = Chain("00", signer)
    lines = [chain.line(RECORD % 0), chain.line(RECORD % 1)]
    signer.name = "second"
    lines.append(chain.line(RECORD % 2))
    found = links(line.encode() for line in lines)
    assert [link.certificate for link in found] == ["first", None, "second"]


def test_lost_lines_are_counted():
    assert json.loads(Chain("00").line(RECORD % 0, lost=3))["lost"] == 3


@pytest.mark.parametrize("line", [b"", b"\xff\n", b"[]\n", b'{"round": "1"}\n', b'{"round": true}\n'])
def test_a_line_that_is_no_record_has_no_round(line):
    (link,) = links([line])
    assert (link.record, link.round, link.before, link.whole) == (None, -1, None, line.endswith(b"\n"))


def test_a_signature_that_cannot_be_read_is_empty():
    (link,) = links([b'{"round": 0, "signature": "?"}\n'])
    assert link.signature == b""


def test_the_beginning_is_of_the_documents_but_not_of_what_a_folder_is_a_branch_of():
    manifest = {"seed": 1, "threads": {"server": 2}}
    begun = beginning(b"seed: 1\n", as_document(manifest))
    assert begun != beginning(b"seed: 2\n", as_document(manifest))
    assert begun != beginning(b"seed: 1\n", as_document({**manifest, "seed": 2}))
    assert begun == beginning(b"seed: 1\n", as_document({**manifest, "branch_of": {"run": "x"}}))
