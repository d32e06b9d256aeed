"""Rows that are lent to one worker after the other."""

from __future__ import annotations

import math

import pytest
import torch

from varangian.protos.refusals import Refusal
from varangian.server.rows.storage import LentRows, RowsInPlace


def lent(count: int, needed: set[str], dtype="float32") -> LentRows:
    return LentRows(count, 3, dtype, needed.__contains__)


def test_a_worker_keeps_its_row_while_it_is_needed_and_loses_it_when_another_has_none():
    needed = {"a", "b"}
    storage = lent(2, needed)
    assert (storage.lend("a", 0), storage.lend("b", 0)) == (None, None)
    storage.place("a", 0)[0].fill_(1)
    assert storage.lend("c", 0) is Refusal.BUSY
    needed.remove("b")
    assert storage.lend("c", 0) is None
    needed.add("c")
    assert storage.lend("b", 0) is Refusal.BUSY
    assert {w: row.tolist() for w, row in storage.rows(["a", "c"]).items()} == {"a": [1] * 3, "c": [0] * 3}


def test_rows_that_are_held_are_lent_to_nobody():
    storage = lent(1, set())
    assert storage.lend("a", 0) is None
    storage.hold(["a"])
    assert (storage.lend("a", 1), storage.lend("b", 1)) == (Refusal.BUSY, Refusal.BUSY)
    storage.release(["a"])
    assert storage.lend("b", 1) is None


def test_numbers_are_kept_as_they_were_asked_for():
    storage = lent(1, {"a"}, "bfloat16")
    storage.lend("a", 0)
    row, entry, most = storage.place("a", 1)
    assert (row.dtype, entry, most, storage.free("a", 1)) == (torch.bfloat16, 1, 2, 2)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("sent", ["float32", "bfloat16"])
def test_a_vector_that_is_handed_over_is_rounded_as_on_the_wire_wherever_it_is_kept(sent, kept):
    copied, in_place = lent(1, {"a"}, kept), RowsInPlace(kept)
    vector = torch.tensor([1 + 2**-9, -3.0, 0.1])
    for storage in (copied, in_place):
        storage.lend("a", 0)
        assert storage.keep("a", vector, sent)
    (one,), (other,) = copied.rows(["a"]).values(), in_place.rows(["a"]).values()
    assert one.dtype == other.dtype
    assert one.tolist() == other.tolist()
    same = sent == kept == "float32"
    assert (other.data_ptr() == vector.data_ptr()) is same
    assert one.data_ptr() != vector.data_ptr()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3.4e38])
def test_a_vector_that_is_handed_over_must_be_finite_in_every_type_on_its_way(bad):
    vector = torch.tensor([1.0, bad, 0.0])
    for sent, kept in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        for storage in (lent(1, {"a"}, kept), RowsInPlace(kept)):
            storage.lend("a", 0)
            fits = bad == 3.4e38 and sent == kept == "float32"
            assert storage.keep("a", vector, sent) is fits


@pytest.mark.parametrize(("entries", "finite"), [([3e38, 3e38], True), ([math.inf, -math.inf], False)])
def test_a_vector_in_place_is_judged_by_its_entries_and_not_by_their_sum(entries, finite):
    storage = RowsInPlace()
    assert storage.keep("a", torch.tensor(entries), "float32") is finite


def test_rows_in_place_that_are_held_are_not_replaced():
    storage = RowsInPlace()
    storage.hold(["a"])
    assert (storage.lend("a", 1), storage.lend("b", 1)) == (Refusal.BUSY, None)
    storage.release(["a"])
    assert storage.lend("a", 1) is None
