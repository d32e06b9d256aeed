import ctypes
import platform

import pytest

from varangian.protos.network import malloc


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_glibc_takes_the_advice():
    assert malloc.keep_large_blocks()


class WithoutMallopt:
    def __init__(self, name):
        pass


def unloadable(name):
    raise OSError("no C library")


@pytest.mark.parametrize("library", [WithoutMallopt, unloadable])
def test_without_glibc_nothing_happens(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert not malloc.keep_large_blocks()
