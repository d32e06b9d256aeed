"""A cache of decoded images for the processes of one machine.

A dozen workers of one machine start together and want the same images. One of them decodes; the others
wait for its file and map it, so the machine also holds the images only once.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rows: TypeAlias = NDArray[np.uint8]
"""(N, 1 + pixels): the label and then the pixels of each sample, the format of the CIFAR-10 binaries."""


def load_or_make(name: str, key: str, make: Callable[[], Rows]) -> Rows:
    """The cached result of `make`, made once for every (name, key).

    Files of other keys under the same name are out of date, and are removed.
    """
    try:
        path = cache_folder() / f"{name}-{key}.npy"
        found = map_file(path)
        return make_once(path, name, make) if found is None else found
    except OSError:  # no home, read-only, disk full: then every process makes its own
        return make()


def cache_folder() -> Path:
    """`varangian` in the user's cache, as the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "varangian"


def map_file(path: Path) -> Rows | None:
    """The rows in a file, private to this process as soon as it writes; None when there is no such file."""
    try:
        rows: Rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):  # the last two: torn or not ours, so make it again
        return None
    return rows if rows.dtype == np.uint8 and rows.ndim == 2 else None


def make_once(path: Path, name: str, make: Callable[[], Rows]) -> Rows:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f"{name}.lock")):
        found = map_file(path)
        if found is not None:
            return found
        for left in path.parent.glob(f"{name}-*.tmp"):  # by a process that was killed: we hold the lock
            left.unlink(missing_ok=True)
        save(path, name, make())
        for old in path.parent.glob(f"{name}-*.npy"):
            if old != path:
                old.unlink(missing_ok=True)
    found = map_file(path)
    if found is None:
        raise FileNotFoundError(path)
    return found


@contextmanager
def lock(path: Path) -> Generator[None]:
    """Alone among the processes of this machine; the lock goes with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def save(path: Path, name: str, rows: Rows) -> None:
    """Save a file atomically: whole or not at all."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f"{name}-", suffix=".tmp", delete=False
    ) as file:
        try:
            np.save(file, rows)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def split_rows(rows: Rows, features: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Samples (N, *features), as views of the rows, and labels (N,) int64."""
    x = rows[:, 1:].reshape(len(rows), *features)
    return torch.from_numpy(x), torch.from_numpy(rows[:, 0].astype(np.int64))
