"""A worker of the run that lies about its vector hears why it is not counted; nobody else notices."""

import pytest
import torch
from tests.hostile.attacks import MIB, Traitor

from varangian.protos import ps_pb2
from varangian.protos.chunks import encode_chunk
from varangian.protos.encoding import encode_vector, payload_digest

CODES = {
    "gap": ("ORDER", [(0, MIB // 2), (MIB, MIB // 2)]),
    "overlap": ("ORDER", [(0, MIB), (MIB // 2, MIB)]),
    "the same again": ("ORDER", [(0, MIB), (0, MIB)]),
    "from the end": ("ORDER", [(MIB, 100)]),
    "out of range": ("ORDER", [(2**62, 100)]),
    "empty chunk": ("CHUNK_SIZE", [(0, 0)]),
    "an odd number of bytes too few": ("TOO_FEW_BYTES", [(0, MIB), (MIB, 2_000_000 - MIB - 3)]),
    "nothing": ("TOO_FEW_BYTES", []),
    "one byte too many": ("TOO_MANY_BYTES", [(0, MIB), (MIB, 2_000_001 - MIB)]),
    "another vector": ("DIGEST", [(0, MIB), (MIB, 2_000_000 - MIB)]),
}
MANIFESTS = {
    "more numbers than there are": ("NUMEL", {"numel": 500_001}),
    "no numbers": ("NUMEL", {"numel": 0}),
    "numbers whose bytes overflow": ("NUMEL", {"numel": 2**62 + 500_000}),
    "half of the bytes": ("DTYPE", {"dtype": ps_pb2.DTYPE_BFLOAT16}),
    "no type": ("DTYPE", {"dtype": ps_pb2.DTYPE_UNSPECIFIED}),
    "another type": ("DTYPE", {"dtype": 77}),
    "another run": ("RUN", {"run_id": "x" * 1000}),
    "another version": ("PROTOCOL", {"protocol": 2**32 - 1}),
    "a second vector": ("SEQUENCE", {"sequence": 1}),
    "a short digest": ("DIGEST_SIZE", {"content_digest": b"x"}),
    "another model": ("LAYOUT", {"layout_digest": bytes(16)}),
    "a round to come": ("FUTURE", {"round": 2**63}),
}


def code(traitor, *messages):
    found = "IDLE"
    while found == "IDLE":  # a busy machine may let the traitor pause for too long
        found = traitor.line.answer(traitor.push(*messages)).get("varangian-code")
    return found


@pytest.mark.slow
def test_chunks(siege, unharmed):
    # Promised is a vector of ones; zeros are sent.
    digest = payload_digest(encode_vector(torch.ones(siege.numel)))
    with unharmed(), Traitor(siege) as traitor:
        for lie, (expected, pieces) in CODES.items():
            chunks = [encode_chunk(offset, bytes(size)) for offset, size in pieces]
            assert code(traitor, traitor.manifest(digest), *chunks) == expected, lie


@pytest.mark.slow
def test_manifests(siege, unharmed):
    with unharmed(), Traitor(siege) as traitor:
        found = {lie: code(traitor, traitor.manifest(**changes)) for lie, (_, changes) in MANIFESTS.items()}
        assert found == {lie: expected for lie, (expected, _) in MANIFESTS.items()}


@pytest.mark.slow
def test_orders_of_messages(siege, unharmed):
    with unharmed(), Traitor(siege) as traitor:
        manifest, chunk = traitor.manifest(), encode_chunk(0, bytes(100))
        assert code(traitor, chunk) == "MALFORMED"
        assert code(traitor, b"") == "MALFORMED"
        assert code(traitor, manifest, manifest) == "MALFORMED"
        assert code(traitor, manifest + chunk) in ("MALFORMED", "TOO_FEW_BYTES")
        assert code(traitor, manifest + b"\x7a\xff\xff\x03" + bytes(65_535)) == "MALFORMED"
