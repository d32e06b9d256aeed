"""Rows in a file that is mapped into memory."""

import errno
import os
import shutil

import pytest
import torch
from tests.server.rows.test_slot import slot_of

from varangian.protos.payloads.encoding import Encoding
from varangian.server.rows.latest_store import NoRoom
from varangian.server.rows.mapped import MappedPlan
from varangian.server.rows.storage import LentRows, allocate_rows

D = 100_000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_in_a_file_are_zeros_that_can_be_written_to(tmp_path, dtype):
    there, plain = allocate_rows(3, D, dtype, tmp_path), allocate_rows(3, D, dtype)
    assert (there.shape, there.dtype, there.any().item()) == (plain.shape, plain.dtype, False)
    assert there.data_ptr() % 64 == plain.data_ptr() % 64 == 0, "kernels may add in another order elsewhere"
    there[1] = 3
    assert there.float().sum(dim=1).tolist() == [0, 3 * D, 0]


def test_all_of_the_file_is_allocated_and_nothing_of_it_is_left(tmp_path, monkeypatch):
    made = []
    allocate = os.posix_fallocate

    def spy(fd, at, size):
        allocate(fd, at, size)
        made.append(os.fstat(fd))

    monkeypatch.setattr(os, "posix_fallocate", spy)
    rows = MappedPlan(tmp_path, 2, D).allocate()
    (status,) = made
    assert status.st_size == 8 * D <= status.st_blocks * 512
    assert [*tmp_path.iterdir()] == []  # not even while it is in use, in case of a kill
    rows[0] = 1
    row = rows[0]
    del rows
    assert row.sum() == D


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch, why):
    def full(fd, at, size):
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoom) as error:
        allocate_rows(3, D, "float32", tmp_path)
    assert str(error.value) == (
        f"The disk of {tmp_path} should take 1.2 MB for 3 vectors. The system says: {os.strerror(why)}. "
        "Free some space, use another folder, or keep half as much with server.rows=bfloat16."
    )
    assert [*tmp_path.iterdir()] == []


def test_a_system_that_cannot_allocate_is_given_zeros(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    write, sizes = os.pwrite, []

    def counting(fd, data, at):
        sizes.append(len(data))
        return write(fd, data[: len(data) // 2 or 1], at)

    monkeypatch.setattr(os, "pwrite", counting)
    rows = MappedPlan(tmp_path, 3, D).allocate()
    assert rows.shape == (3, D)
    assert not rows.any()
    assert len(sizes) > 2

    def full(fd, data, at):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoRoom, match="No space left on device"):
        MappedPlan(tmp_path, 3, D).allocate()


def test_a_disk_without_room_is_refused_before_a_file_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 21, 79))
    with pytest.raises(NoRoom, match=r"should take 800 kB for 2 vectors\. Found 79 bytes\."):
        MappedPlan(tmp_path, 2, D).allocate()
    with pytest.raises(NotADirectoryError, match=r"`server\.rows_folder` should be a folder that exists"):
        MappedPlan(tmp_path / "missing", 2, D).check_room()


def test_the_plan_says_what_it_takes(tmp_path):
    assert MappedPlan(tmp_path, 8, 1_000_000_000, "bfloat16").sentence() == (
        f"The vectors of a round take 16 GB in a file in {tmp_path}: 8 rows of 1000000000 numbers in "
        "bfloat16."
    )


@pytest.mark.parametrize("wire", ["float32", "int8"])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_uploads_land_there_as_in_memory(tmp_path, wire, kept):
    encoding = Encoding(D, wire)
    vector = torch.randn(D, generator=torch.Generator().manual_seed(1))
    payload = encoding.encode(vector, 1)
    landed = []
    for folder in (None, tmp_path):
        storage = LentRows(2, D, kept, {"w00"}.__contains__, folder)
        storage.lend("w00", 0)
        slot = slot_of(storage.place("w00", 0)[0], wire)
        slot.sink.take(payload)
        while not slot.full:
            slot.sink.take(payload[slot.sink.passed :])
        landed.append(storage.rows(["w00"])["w00"])
        assert storage.nbytes == 2 * D * landed[0].element_size()
        storage.add(allocate_rows(1, D, kept, folder))
        assert storage.nbytes == 3 * D * landed[0].element_size()
    assert torch.equal(*landed)
