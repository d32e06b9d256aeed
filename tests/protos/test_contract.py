"""Manifests against the contract of a run."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.refused import refused

from varangian.protos import ps_pb2
from varangian.protos.contract import Contract, Terms, check_dtype, check_exact, check_fragments
from varangian.protos.errors import Refused
from varangian.protos.layout import Layout
from varangian.protos.messages import PROTOCOL
from varangian.protos.payloads.encoding import WIRE
from varangian.protos.refusals import Refusal

LAYOUT = Layout((("weight", (5, 3)), ("bias", (3,))))
CONTRACT = Contract("run-1", LAYOUT)
DIGEST = bytes(16)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("protocol", 0, Refusal.PROTOCOL),
        ("protocol", 2**32 - 1, Refusal.PROTOCOL),
        ("run_id", "", Refusal.RUN),
        ("run_id", "run-2" * 1000, Refusal.RUN),
        ("layout_digest", b"", Refusal.LAYOUT),
        ("layout_digest", bytes(60_000), Refusal.LAYOUT),
        ("sequence", 1, Refusal.SEQUENCE),
        ("dtype", 0, Refusal.DTYPE),
        ("dtype", 99, Refusal.DTYPE),
        ("numel", 0, Refusal.NUMEL),
        ("numel", LAYOUT.numel + 1, Refusal.NUMEL),
        ("numel", 2**62 + LAYOUT.numel, Refusal.NUMEL),
        ("numel", 2**64 - 1, Refusal.NUMEL),
        ("content_digest", b"", Refusal.DIGEST_SIZE),
        ("content_digest", bytes(17), Refusal.DIGEST_SIZE),
    ],
)
def test_a_manifest_that_differs_in_one_field_is_refused(field, value, code):
    manifest = CONTRACT.manifest(7, DIGEST)
    CONTRACT.check(manifest)
    setattr(manifest, field, value)
    assert refused(CONTRACT.check, manifest) is code


@given(
    st.builds(
        ps_pb2.Manifest,
        protocol=st.sampled_from([PROTOCOL, 1]),
        run_id=st.sampled_from(["run-1", "run-2"]),
        round=st.integers(0, 2**64 - 1),
        sequence=st.integers(0, 1),
        layout_digest=st.sampled_from([LAYOUT.digest, DIGEST]),
        dtype=st.integers(0, 2),
        numel=st.sampled_from([LAYOUT.numel, 0, 2**63]),
        content_digest=st.binary(max_size=17),
    )
)
def test_a_manifest_passes_exactly_when_it_is_the_one_we_would_write(manifest):
    ours = CONTRACT.manifest(manifest.round, manifest.content_digest)
    good = manifest == ours and len(manifest.content_digest) == 16
    try:
        CONTRACT.check(manifest)
    except Refused:
        assert not good
    else:
        assert good


def test_a_payload_has_the_size_that_the_contract_says():
    for dtype in WIRE:
        for exact in (0, 3, LAYOUT.numel):
            contract = replace(CONTRACT, dtype=dtype, exact=exact)
            assert len(contract.encoding.encode(torch.zeros(LAYOUT.numel), 0)) == contract.size


def test_a_server_cannot_ask_for_more_buffers_than_there_are_numbers():
    assert check_exact(LAYOUT.numel, LAYOUT.numel) == LAYOUT.numel
    assert refused(check_exact, LAYOUT.numel + 1, LAYOUT.numel) is Refusal.MALFORMED


def test_a_manifest_without_a_digest_is_for_payloads_that_are_sealed():
    CONTRACT.check(CONTRACT.manifest(0, b""), digest_follows=True)
    CONTRACT.check(CONTRACT.manifest(0, DIGEST), digest_follows=True)
    assert refused(CONTRACT.check, CONTRACT.manifest(0, b"x")) is Refusal.DIGEST_SIZE


def test_a_manifest_of_another_dtype_is_refused():
    narrow = replace(CONTRACT, dtype="bfloat16")
    narrow.check(narrow.manifest(0, DIGEST))
    assert refused(CONTRACT.check, narrow.manifest(0, DIGEST)) is Refusal.DTYPE


def test_a_dtype_that_is_not_known_is_refused():
    assert check_dtype(ps_pb2.DTYPE_BFLOAT16) == "bfloat16"
    for number in (0, 99):
        assert refused(check_dtype, number) is Refusal.DTYPE


def test_terms_come_back_from_a_reply_and_are_not_sent_where_there_are_none():
    terms = Terms(epoch=2, resumed_at=50, every=10, keep=3, parent="earlier", momentum=0.0, deadline=60.0)
    reply = ps_pb2.JoinReply(
        epoch=terms.epoch,
        resumed_at=terms.resumed_at,
        checkpoint_every=terms.every,
        checkpoint_keep=terms.keep,
        parent=terms.parent,
        momentum=terms.momentum,
        deadline=terms.deadline,
    )
    assert Terms.of(reply) == terms
    assert Terms.of(ps_pb2.JoinReply()) == Terms()
    with pytest.raises(Refused, match="no run has"):
        Terms.of(ps_pb2.JoinReply(resumed_at=1 << 60))


@pytest.mark.parametrize(
    "said",
    [{"momentum": 1.0}, {"momentum": -0.1}, {"momentum": nan}, {"deadline": -1.0}, {"deadline": inf}],
)
def test_a_momentum_or_a_deadline_that_no_run_has_is_refused(said):
    with pytest.raises(Refused, match="Found"):
        Terms.of(ps_pb2.JoinReply(**said))


def test_a_push_of_a_run_with_fragments_has_those_of_its_round():
    layout = Layout((("a", (4, 3)), ("b", (5,)), ("c", (6,))))
    contract = Contract("run-1", layout, terms=Terms(fragments=2))
    for round, numel in ((0, 12), (1, 11), (2, 12), (7, 11)):
        part = contract.of_push(round)
        assert (part.numel, part.encoding.numel, part.size) == (numel, numel, 4 * numel)
        manifest = part.manifest(round, DIGEST)
        assert manifest.numel == numel
        part.check(manifest)
        assert refused(part.check, contract.manifest(round, DIGEST)) is Refusal.NUMEL
        assert refused(contract.check, manifest) is Refusal.NUMEL
    assert Contract("run-1", layout).of_push(1).numel == 23
    assert Terms.of(ps_pb2.JoinReply(fragments=2)).fragments == 2
    assert Terms.of(ps_pb2.JoinReply()).fragments == 1
    check_fragments(layout, 3)
    assert refused(check_fragments, layout, 4) is Refusal.MALFORMED


def test_changes_between_two_rounds_have_the_fragments_of_these():
    layout = Layout((("a", (4, 3)), ("b", (5,)), ("c", (6,))))
    contract = Contract("run-1", layout, terms=Terms(fragments=3))
    for since, round, slices in ((0, 1, [slice(0, 12)]), (4, 6, [slice(12, 23)]), (2, 4, None)):
        part = contract.of_changes(since, round)
        assert part.slices == (slices or [slice(0, 17)])
        part.check(part.manifest(round, DIGEST))
        assert refused(part.check, contract.manifest(round, DIGEST)) is Refusal.NUMEL
    assert contract.slices is None
    for since, round in ((3, 3), (4, 3), (0, 3), (0, 2**63)):
        assert refused(contract.of_changes, since, round) is Refusal.MALFORMED
    assert refused(Contract("run-1", layout).of_changes, 0, 1) is Refusal.MALFORMED
