"""Rows in a file that is mapped into memory, for rounds whose vectors are larger than memory.

All of the file is allocated when it is made: a disk without room is an error then, and not a signal that
ends the process when a page is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from varangian.protos.payloads.encoding import FLOAT32, TORCH, RowDtype
from varangian.server.rows.latest_store import NoRoom, format_bytes

SETTING = "server.rows_folder"
BLOCK = 1 << 20
SPACE = "Free some space, use another folder, or keep half as much with server.rows=bfloat16."


@dataclass(frozen=True)
class MappedPlan:
    """The file for the rows of rounds, known before it is made."""

    folder: Path
    count: int
    """How many rows."""
    columns: int
    dtype: RowDtype = FLOAT32

    @property
    def bytes(self) -> int:
        return self.count * self.columns * TORCH[self.dtype].itemsize

    def sentence(self) -> str:
        """A sentence about its size, for the start of a run."""
        return (
            f"The vectors of a round take {format_bytes(self.bytes)} in a file in {self.folder}: "
            f"{self.count} rows of {self.columns} numbers in {self.dtype}."
        )

    def check_room(self) -> None:
        """See that the folder exists and its disk has room.

        Raises:
            NoRoom: it has not.
            NotADirectoryError: there is no such folder.
        """
        if not self.folder.is_dir():
            raise NotADirectoryError(f"`{SETTING}` should be a folder that exists. Found {self.folder}.")
        if (free := shutil.disk_usage(self.folder).free) < self.bytes:
            raise NoRoom(self._lack(f"Found {format_bytes(free)}."))

    def allocate(self) -> Tensor:
        """Zeros, (count, columns), in a file without a name: however the process ends, nothing is left.

        Raises:
            NoRoom: the disk is full, or nothing can be written there.
            NotADirectoryError: there is no such folder.
        """
        self.check_room()
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                _allocate(file.fileno(), self.bytes)
                matrix = np.memmap(file, np.uint8, "r+", shape=(self.count, self.bytes // self.count))
        except OSError as error:
            raise NoRoom(self._lack(f"The system says: {error.strerror or error}.")) from error
        return torch.from_numpy(matrix).view(TORCH[self.dtype])

    def _lack(self, found: str) -> str:
        size = format_bytes(self.bytes)
        return f"The disk of {self.folder} should take {size} for {self.count} vectors. {found} {SPACE}"


def _allocate(file: int, size: int) -> None:
    """Have the system find room for so many bytes of a new file.

    Raises:
        OSError: there is none.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros, at = bytes(min(size, BLOCK)), 0  # as on macOS
    while at < size:
        at += os.pwrite(file, zeros[: size - at], at)
