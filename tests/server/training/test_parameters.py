"""Versions of the parameters: left alone while they are read, and then used again."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch

from varangian.resources import resident_memory
from varangian.server.training.parameters import BLOCK, ParameterVersions, norm


def floats(payload: memoryview) -> list[float]:
    return payload.cast("f").tolist()


def moved(versions: ParameterVersions, value: float) -> int:
    """Publish a version with this value everywhere, and say where it lies."""
    draft = versions.draft()
    draft.fill_(value)
    versions.publish(draft)
    return draft.data_ptr()


def test_the_first_version_is_a_copy():
    start = torch.ones(3)
    versions = ParameterVersions(start)
    start.zero_()
    assert versions.current.tolist() == [1.0] * 3
    assert floats(versions.payload) == [1.0] * 3


def test_a_payload_is_read_only():
    with pytest.raises(TypeError):
        ParameterVersions(torch.ones(3)).payload[0] = 1


def test_a_draft_changes_nothing():
    versions = ParameterVersions(torch.ones(3))
    draft = versions.draft()
    draft.zero_()
    assert floats(versions.payload) == [1.0] * 3
    versions.discard(draft)
    assert versions.draft().data_ptr() == draft.data_ptr()


def test_two_vectors_are_enough_when_nobody_reads():
    versions = ParameterVersions(torch.zeros(3))
    gc.disable()  # the order of events must not depend on it
    try:
        places = {moved(versions, float(i)) for i in range(9)} | {versions.current.data_ptr()}
    finally:
        gc.enable()
    assert len(places) == 2


@pytest.mark.parametrize("part", [slice(None), slice(4, 8)])
def test_what_is_read_stays(part: slice):
    versions = ParameterVersions(torch.ones(3))
    reader = versions.payload[part]
    before = bytes(reader)
    places = {moved(versions, float(i)) for i in range(2, 9)}
    assert bytes(reader) == before
    first = np.frombuffer(reader, np.uint8).__array_interface__["data"][0] - (part.start or 0)
    assert first not in places
    del reader
    moved(versions, 9.0)
    assert moved(versions, 10.0) in places | {first}
    assert floats(versions.payload) == [10.0] * 3


def test_norms():
    vector = torch.full((2 * BLOCK + 5,), 2.0)
    assert norm(vector) == pytest.approx(2 * math.sqrt(len(vector)), rel=1e-12)
    assert norm(torch.full((9,), 3e38)) == pytest.approx(9e38, rel=1e-6)
    for bad in (math.nan, math.inf):
        vector[BLOCK + 3] = bad
        assert norm(vector) is None


@pytest.mark.skipif(not resident_memory(), reason="the system does not say how much memory is taken")
def test_a_norm_takes_no_memory_to_speak_of():
    vector = torch.ones(40_000_000)
    norm(vector[:BLOCK])
    before = resident_memory()
    assert norm(vector) == pytest.approx(math.sqrt(len(vector)))
    assert resident_memory() - before < 20_000_000  # 160 MB of it were 70 to 150 more, in crumbs
