"""What the chain of a record tells: the line, the round, and what became of it."""

import json

import pytest

from varangian.experiments.audit.chain_check import (
    Signatures,
    end_problem,
    problems,
    read_lines,
    repetitions,
)
from varangian.launch.output.chain import Chain, digest

BEGINNING = digest(b"documents")


class Signer:
    """A certificate whose signatures are digests with its name."""

    def __init__(self, name="server"):
        self.name = name

    def certificate(self):
        return self.name

    def sign(self, data):
        return digest(self.name.encode() + data).encode()

    def verifies(self, signature, data):
        return signature == self.sign(data)


def chained(rounds=6, signer=None):
    """The lines of a record."""
    chain = Chain(BEGINNING, signer)
    return [added(chain, round) for round in range(rounds)]


def added(chain, round, lost=0, **fields):
    record = {
        "round": round,
        "weights": {"w00": 0.5},
        "skipped": None,
        "pushes": {},
        "parameters": f"{round}",
    }
    return (chain.line(json.dumps(record | fields), lost) + "\n").encode()


def found(lines, signer=None):
    signatures = None if signer is None else Signatures({signer.name: signer}.get)
    return [*problems(read_lines(lines, signatures), BEGINNING)]


def swapped(line):
    """The same line with another weight."""
    return line.replace(b"0.5", b"0.6")


def test_a_record_as_it_was_written():
    signer = Signer()
    assert found(chained()) == found(chained(signer=signer), signer) == []


def test_a_swapped_weight_is_named_with_its_line_and_its_round():
    lines = chained()
    lines[2] = swapped(lines[2])
    assert found(lines) == ["rounds.jsonl, line 3 (round 2), was changed: line 4 names another digest"]


def test_a_removed_line_is_named():
    lines = chained()
    assert found([*lines[:2], *lines[3:]]) == [
        "rounds.jsonl: a line is missing between rounds 1 and 3, before line 3"
    ]
    assert found([*lines[:2], *lines[4:]]) == [
        "rounds.jsonl: 2 lines are missing between rounds 1 and 4, before line 3"
    ]
    assert found(lines[1:]) == ["rounds.jsonl: the beginning is missing: round 0, before line 1 (round 1)"]


def test_lines_in_another_order_or_put_in():
    lines = chained()
    lines[2], lines[3] = lines[3], lines[2]
    assert found(lines)
    lines = chained()
    copy = [*lines[:4], lines[2], *lines[4:]]
    assert found(copy) == [
        "rounds.jsonl, line 5 (round 2), is a copy of line 3",
        "rounds.jsonl, line 5 (round 2), was put in: line 6 follows line 4",
    ]
    made_up = added(Chain(digest(lines[3].strip())), 3, weights=None)
    assert "rounds.jsonl, line 5 (round 3), was put in: line 6 follows line 4" in found(
        [*lines[:4], made_up, *lines[4:]]
    )


def test_another_configuration_is_named():
    lines = read_lines(chained(), None)
    assert [*problems(lines, digest(b"others"))] == [
        "config.yaml or manifest.json was changed: "
        "rounds.jsonl, line 1 (round 0), names another digest of them"
    ]


def test_a_changed_digest_leaves_two_suspects():
    lines = chained()
    lines[2] = lines[2].replace(digest(lines[1].strip()).encode(), b"0" * 64)
    assert found(lines) == [
        "rounds.jsonl, line 2 (round 1), was changed, or line 3 itself, which names another digest",
        "rounds.jsonl, line 3 (round 2), was changed: line 4 names another digest",
    ]


def test_a_changed_round_and_a_line_that_is_no_record():
    lines = chained()
    lines[2] = lines[2].replace(b'"round": 2', b'"round": 7')
    assert found(lines) == [
        "rounds.jsonl, line 3 (round 7), should be of round 2",
        "rounds.jsonl, line 3 (round 7), was changed: line 4 names another digest",
    ]
    lines = chained()
    lines[2] = b"nothing\n"
    assert found(lines)[0] == "rounds.jsonl, line 3, should be the record of a round"


def test_a_signature_names_the_line_also_at_the_end():
    signer = Signer()
    lines = chained(signer=signer)
    lines[5] = swapped(lines[5])
    assert found(lines, signer) == ["rounds.jsonl, line 6 (round 5), is not signed by the server"]


def test_a_chain_that_was_made_anew_is_not_signed_by_the_server():
    signer = Signer()
    lines = chained(signer=signer)
    chain = Chain(digest(lines[2].strip()), Signer("somebody"))
    forged = [*lines[:3], *(added(chain, round, weights=None) for round in (3, 4, 5))]
    assert [text.partition(",")[2] for text in found(forged, signer)] == [
        f" line {number} (round {number - 1}), is not signed by the server" for number in (4, 5, 6)
    ]


def test_lines_between_two_that_are_signed_are_missing():
    signer = Signer()
    chain = Chain(BEGINNING, signer)
    lines = [added(chain, round) for round in range(4)]
    again = [added(chain, round, resumed={"round": 2} if round == 2 else None) for round in (2, 3, 4)]
    assert found([*lines, *again], signer) == []
    assert found([*lines[:3], *again], signer) == [
        "rounds.jsonl: lines are missing between line 3 and line 4"
    ]


def test_lines_that_the_server_has_lost_are_told():
    chain = Chain(BEGINNING)
    lines = [added(chain, round, lost=2 if round > 4 else 0) for round in range(8)]
    assert found([*lines[:3], *lines[5:]]) == [
        "rounds.jsonl: lost by the server, whose disk did not take them: rounds 3 to 4, before line 4"
    ]
    assert "lines are missing" in found([*lines[:2], *lines[5:]])[0]
    told_at_the_end = problems(read_lines([*lines[:2], *lines[5:]], None), BEGINNING, lost=3)
    assert "lost by the server" in next(told_at_the_end)


def test_a_round_without_an_update_leaves_the_parameters():
    chain = Chain(BEGINNING)
    good = [added(chain, 0), added(chain, 1, skipped="too few", parameters="0")]
    assert found(good) == []
    bad = added(chain, 2, skipped="too few", parameters="2")
    assert found([*good, bad]) == [
        "rounds.jsonl, line 3 (round 2), had no update, but other parameters than the line before"
    ]


def test_the_lines_of_an_earlier_version_are_followed_from_where_the_chain_begins():
    old = [b'{"round": 0, "skipped": null}\n', b'{"round": 1, "skipped": null}\n']
    chain = Chain(digest(old[1].strip()))
    lines = [*old, added(chain, 2, resumed={"round": 2}), added(chain, 3)]
    assert found(lines) == []
    assert found([old[0], old[1].replace(b"null", b'"x"'), *lines[2:]])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (6, None),
        (3, None),
        (
            8,
            "rounds.jsonl: 2 lines are missing: "
            "it ends with line 6 (round 5), and result.json names line 8",
        ),
    ],
)
def test_the_end_that_another_file_tells(count, expected):
    lines = read_lines(chained(), None)
    known = lines[min(count, 6) - 1].digest
    assert end_problem(lines, count, known, "result.json") == expected
    changed = "rounds.jsonl, line 6 (round 5), was changed: result.json names another digest"
    assert end_problem(lines, 6, "00", "result.json") == changed


def test_rounds_that_were_done_twice_are_compared():
    chain = Chain(BEGINNING)
    lines = [added(chain, round) for round in range(6)]
    lines += [
        added(chain, round, resumed={"round": 3, "mended": 9} if round == 3 else None) for round in (3, 4)
    ]
    lines += [
        added(chain, round, parameters="x", resumed={"round": 4} if round == 4 else None)
        for round in (4, 5)
    ]
    assert found(lines) == []
    assert [*repetitions(read_lines(lines, None))] == [
        "the run went on with round 3 in line 7, and cut off 9 bytes of a line that was not whole; "
        "rounds 3 to 4 were done twice, with the same parameters",
        "the run went on with round 4 in line 9; round 4 was done twice, with others from round 4 on",
    ]
