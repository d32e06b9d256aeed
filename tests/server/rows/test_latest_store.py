"""The store of latest vectors: whole rows or none, and what it takes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.extent import examples
from torch import Tensor

from varangian.server.rows import latest_store
from varangian.server.rows.latest_store import LatestPlan, LatestStore, NoRoom

WORKERS = ("w00", "w01", "w02")
D = 5
LARGE = 3.4e38
"""A float32 that bfloat16 rounds to infinity."""


@pytest.fixture(params=["memory", "memory bfloat16", "disk", "disk bfloat16"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LatestStore]:
    dtype = "bfloat16" if "bfloat16" in request.param else "float32"
    made = LatestStore(WORKERS, D, dtype=dtype, folder=tmp_path if "disk" in request.param else None)
    yield made
    made.close()


def full(value: float) -> Tensor:
    return torch.full((D,), value)


def held(store: LatestStore) -> dict[str, list[float]]:
    return {worker: row.tolist() for worker, row in store.rows().items()}


def test_workers_never_heard_of_are_zero(store: LatestStore):
    store.replace("w01", full(2), 0)
    assert held(store) == {"w00": [0] * D, "w01": [2] * D, "w02": [0] * D}
    assert store.ages(3) == {"w01": 3}


def test_the_latest_vector_takes_the_place_of_the_one_before(store: LatestStore):
    for round in range(7):
        for i, worker in enumerate(WORKERS):
            store.replace(worker, full(10 * round + i), round)
    assert held(store) == {worker: [60 + i] * D for i, worker in enumerate(WORKERS)}
    assert store.stamps == dict.fromkeys(WORKERS, 6)


def test_vectors_that_are_too_old_become_zero(store: LatestStore):
    for round, worker in enumerate(WORKERS):
        store.replace(worker, full(round + 1), round)
    assert store.expire(older_than=2) == ("w00", "w01")
    assert held(store) == {"w00": [0] * D, "w01": [0] * D, "w02": [3] * D}
    assert store.expire(older_than=2) == ()
    store.replace("w00", full(9), 1)  # it may come back with any round
    assert held(store)["w00"] == [9] * D


@pytest.mark.parametrize(
    ("worker", "vector", "round", "error", "sentence"),
    [
        ("w07", full(1), 4, KeyError, "'w07' is not one of the 3 registered workers"),
        ("w00", torch.ones(D + 1), 4, ValueError, r"`vector` should be \(5,\). Found \(6,\)."),
        ("w00", full(1), 2, ValueError, "not be before 3, that of the last of 'w00'. Found 2."),
    ],
)
def test_what_does_not_fit_changes_nothing(
    store: LatestStore, worker: str, vector: Tensor, round: int, error: type[Exception], sentence: str
):
    store.replace("w00", full(1), 3)
    before = held(store), dict(store.stamps)
    with pytest.raises(error, match=sentence):
        store.replace(worker, vector, round)
    assert (held(store), dict(store.stamps)) == before


def test_bfloat16_rounds_to_nearest_even_and_refuses_infinity(tmp_path: Path):
    for folder in (None, tmp_path):
        store = LatestStore(WORKERS, D, dtype="bfloat16", folder=folder)
        store.replace("w00", full(1 + 2**-8), 0)
        assert store.rows()["w00"].dtype is torch.bfloat16
        assert held(store)["w00"] == [1] * D
        with pytest.raises(ValueError, match="finite in bfloat16"):
            store.replace("w00", torch.cat([torch.ones(D - 1), torch.tensor([LARGE])]), 1)
        assert held(store)["w00"] == [1] * D
        assert store.stamps == {"w00": 0}
        store.close()


class Crash(Exception):
    pass


def test_no_row_is_torn_when_a_write_breaks_off_in_the_middle(
    store: LatestStore, monkeypatch: pytest.MonkeyPatch
):
    store.replace("w00", full(1), 0)
    monkeypatch.setattr(latest_store, "STRIP", 2)
    strips = iter(range(2))
    rounded = latest_store._convert

    def breaks(strip: Tensor, dtype: torch.dtype) -> Tensor:
        if next(strips, None) is None:
            raise Crash
        return rounded(strip, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(latest_store, "_convert", breaks)
        with pytest.raises(Crash):
            store.replace("w00", full(2), 1)
    assert held(store)["w00"] == [1] * D
    assert store.stamps == {"w00": 0}
    store.replace("w00", full(3), 1)
    assert held(store)["w00"] == [3] * D


def test_a_disk_that_fills_up_is_an_error_and_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = LatestStore(WORKERS, D, folder=tmp_path)
    store.replace("w00", full(1), 0)
    write = os.pwrite

    def half(fd: int, data: memoryview, at: int) -> int:
        return write(fd, data[: len(data) // 2 or 1], at)

    def none(fd: int, data: memoryview, at: int) -> int:
        write(fd, data[:6], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", none)
    with pytest.raises(NoRoom, match=r"vector of w00 cannot be written to .*: No space left"):
        store.replace("w00", full(2), 1)
    assert held(store)["w00"] == [1] * D
    monkeypatch.setattr(os, "pwrite", half)  # a call may write less than it was given
    store.replace("w00", full(3), 1)
    assert held(store)["w00"] == [3] * D
    store.close()


def test_nothing_is_left_on_disk(tmp_path: Path):
    store = LatestStore(WORKERS, 100_000, folder=tmp_path)
    store.replace("w00", torch.ones(100_000), 0)
    status = os.fstat(store._backing._file.fileno())
    assert status.st_size == 5 * 400_000
    assert status.st_blocks * 512 < 2 * 400_000  # sparse: one row was written
    assert list(tmp_path.iterdir()) == []  # not even while it is open, in case of a kill
    row = store.rows()["w00"]
    store.close()
    assert row.sum() == 100_000  # a row that is still held stays readable


@pytest.mark.parametrize(
    ("plan", "bytes", "sentence"),
    [
        (LatestPlan(1000, 62_006), 248_272_024, "up to 248 MB in memory: 1000 + 1 rows of 62006 numbers"),
        (LatestPlan(1000, 11_200_000), 44_844_800_000, "up to 44.8 GB in memory"),
        (LatestPlan(1000, 62_006, "bfloat16"), 124_136_012, "in bfloat16."),
        (LatestPlan(3, 5, folder=Path("/rows")), 80, "80 bytes in a file in /rows: 3 + 1 rows"),
    ],
)
def test_what_it_takes_is_known_before(plan: LatestPlan, bytes: int, sentence: str):
    assert plan.bytes == bytes
    assert sentence in plan.sentence()


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 21, 79))
    with pytest.raises(NoRoom) as error:
        LatestStore(WORKERS, D, folder=tmp_path)
    assert str(error.value) == (
        f"The disk of {tmp_path} should have 80 bytes free for the latest vectors of 3 workers. "
        "Found 79 bytes. Free some space, use another folder, or keep bfloat16."
    )
    with pytest.raises(NotADirectoryError, match="should be a folder that exists"):
        LatestStore(WORKERS, D, folder=tmp_path / "missing")


def test_bad_plans():
    with pytest.raises(ValueError, match=r"`n` and `d` should be at least 1\. Found 0 and 3\."):
        LatestPlan(0, 3)
    with pytest.raises(ValueError, match=r"float32 or bfloat16\. Found 'int8'"):
        LatestPlan(1, 3, "int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different names"):
        LatestStore(("w00", "w00"), D)


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=30))
def test_any_history_keeps_what_a_dictionary_would(steps: list[tuple[int, int, bool]]):
    store, kept = LatestStore(WORKERS, D), dict[str, tuple[int, float]]()
    round = 0
    for value, (i, later, expires) in enumerate(steps, 1):
        round += later
        store.replace(WORKERS[i], full(value), round)
        kept[WORKERS[i]] = round, value
        if expires:
            store.expire(older_than=round - 1)
            kept = {worker: last for worker, last in kept.items() if last[0] >= round - 1}
        wanted = {worker: [kept.get(worker, (0, 0))[1]] * D for worker in WORKERS}
        assert held(store) == wanted
        assert store.ages(round) == {worker: round - kept[worker][0] for worker in sorted(kept)}
    store.close()


def test_what_is_forgotten_is_zero_and_its_memory_is_used_again():
    latest = LatestStore(("a", "b"), 2)
    for worker in ("a", "b"):
        latest.replace(worker, torch.ones(2), 3)
    assert latest.forget(["b", "a", "nobody"]) == ("b", "a")
    assert [row.tolist() for row in latest.rows().values()] == [[0.0, 0.0]] * 2
    assert latest.ages(3) == {}
    latest.replace("b", torch.full((2,), 5.0), 0)
    latest.replace("a", torch.full((2,), 4.0), 1)
    assert {w: row.tolist() for w, row in latest.rows().items()} == {"a": [4.0, 4.0], "b": [5.0, 5.0]}
