"""Rows that are lent to one worker after the other."""

from __future__ import annotations

import torch

from varangian.protos.refusals import Refusal
from varangian.server.rows.storage import LentRows


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
