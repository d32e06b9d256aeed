"""Threads that share a kernel's work change no bit of it."""

import threading

import pytest
import torch

from varangian.aggregators.kernels import cores, native
from varangian.aggregators.numeric.order import Window
from varangian.aggregators.rows import Rows

D = 3 * native.SLICE + 12_345


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr(cores, "_usable", lambda: 3)


@pytest.fixture
def rows():
    rows = Rows(tuple(torch.randn(D) for _ in range(7)))
    if reason := native.refuses(rows):
        pytest.skip(reason)
    return rows


def test_as_many_as_torch_has_until_there_may_be_more(three):
    assert cores.cores() == 1
    with cores.every_core():
        assert cores.cores() == 3
        with cores.every_core():
            pass
        assert cores.cores() == 3
        torch.set_num_threads(5)
        assert cores.cores() == 5
        torch.set_num_threads(1)
    assert cores.cores() == 1


def test_what_one_thread_may_is_no_matter_of_another(three):
    found = []
    with cores.every_core():
        other = threading.Thread(target=lambda: found.append(cores._granted.get()))
        other.start()
        other.join()
    assert found == [1]


def test_an_error_takes_them_back(three):
    with pytest.raises(ZeroDivisionError), cores.every_core():
        raise ZeroDivisionError
    assert cores.cores() == 1


def test_never_more_than_help(monkeypatch):
    monkeypatch.setattr(cores, "_usable", lambda: 500)
    with cores.every_core():
        assert cores.cores() == cores.MOST_THREADS


@pytest.mark.parametrize("reference", [None, torch.linspace(-1, 1, D)], ids=["plain", "reference"])
def test_no_bit_changes(three, rows, reference, monkeypatch):
    coords = torch.randn(2, len(rows) + 1, dtype=torch.float64)
    verbs = (
        lambda: native.gram(rows, reference),
        lambda: native.combine(coords, rows, reference),
        lambda: native.columnwise(Window(2, 5), None, rows, None),
    )
    alone = [verb() for verb in verbs]
    threads = set()
    call = native._call

    def watched(*given):
        threads.add(threading.current_thread().name)
        return call(*given)

    monkeypatch.setattr(native, "_call", watched)
    with cores.every_core():
        shared = [verb() for verb in verbs]
    assert threads
    assert all(name.startswith("varangian-kernels") for name in threads)
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one, other)
