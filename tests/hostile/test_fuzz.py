"""Bytes from nowhere. VARANGIAN_FUZZ=10000 makes it so many of each kind."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.extent import examples, patience
from tests.hostile import attacks, probes

from varangian.protos import ps_pb2
from varangian.protos.messages import encode_varint
from varangian.protos.payloads.chunks import encode_chunk

COUNT = int(os.environ.get("VARANGIAN_FUZZ", examples(300)))

whole = st.builds(
    lambda offset, data: encode_chunk(offset, data), st.integers(0, 2**64 - 1), st.binary(max_size=40)
)
almost = st.builds(
    lambda tag, length, offset, data: b"".join(
        (tag, encode_varint(length), b"\x08", offset, b"\x12", encode_varint(len(data)), data)
    ),
    st.sampled_from([b"\x12", b"\x0a", b"\x12\x80"]),
    st.integers(0, 60) | st.integers(0, 2**64),
    st.integers(0, 2**70).map(encode_varint) | st.binary(min_size=1, max_size=11),
    st.binary(max_size=40),
)
manifest = st.builds(
    lambda run, round, numel: ps_pb2.PushRequest(
        manifest=ps_pb2.Manifest(run_id=run, round=round, numel=numel)
    ).SerializeToString(),
    st.text(max_size=10),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
text = st.lists(st.from_regex(r"(scalar|[0-9x]{1,9}) \S{1,5}", fullmatch=True), max_size=4).map(
    lambda lines: "".join(f"{line}\n" for line in lines).encode()
)


@st.composite
def damaged(draw):
    """A message with some bytes changed, inserted or cut out."""
    data = bytearray(draw(whole | almost | manifest | text))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@pytest.mark.parametrize("probe", probes.PROBES, ids=lambda probe: probe.__name__)
@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary() | damaged())
def test_any_bytes(probe, data):
    probe(data)


@pytest.mark.slow
@pytest.mark.exhaustive  # among the attacks of test_peers.py there are fewer of them
@pytest.mark.timeout(patience(120 + COUNT))
def test_a_server_takes_any_message(siege, unharmed):
    with unharmed():
        attacks.random_messages(siege, COUNT)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_guided_by_coverage():
    script = Path(__file__).with_name("fuzz_codec.py")
    found = subprocess.run(
        [sys.executable, str(script), f"-runs={10 * COUNT}", "-max_len=400"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
