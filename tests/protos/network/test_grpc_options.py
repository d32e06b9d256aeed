"""Bytes that may be sent before a reader asks for them."""

import pytest

from varangian.protos.messages import INLINE_LIMIT
from varangian.protos.network.grpc_options import LOOKAHEAD, SMALL_MODEL_LOOKAHEAD, inline_lookahead


@pytest.mark.parametrize("payload", [0, 4, LOOKAHEAD, 20_000, INLINE_LIMIT])
def test_a_payload_in_one_message_may_be_sent_ahead_and_little_more(payload):
    found = inline_lookahead(payload)
    assert LOOKAHEAD <= found <= SMALL_MODEL_LOOKAHEAD
    assert found >= min(payload, SMALL_MODEL_LOOKAHEAD)
    assert found <= max(LOOKAHEAD, payload + 2048)
