"""A process that has no file descriptors left, as under an attack or with a limit that is too low."""

import errno
import os
import resource
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_descriptors() -> Generator[list[int]]:
    """This process cannot open anything; yields descriptors that may be closed to change that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
        while _one_more(taken):
            pass
        yield taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _one_more(taken: list[int]) -> bool:
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return False
    return True
