"""Short work on the event loop, long work in a thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from varangian.launch.simulation.short_work import ShortWork, computes_as_a_new_thread, torch_threads


def test_work_is_done_here_while_it_is_short():
    here = threading.get_ident()
    with ThreadPoolExecutor(1) as thread:
        short = ShortWork(thread, longest=1e6)
        found = [short.submit(threading.get_ident).result() == here for _ in range(3)]
        assert found == [False, True, True]
        long = ShortWork(thread, longest=0)
        assert not any(long.submit(threading.get_ident).result() == here for _ in range(3))


def test_errors_are_those_of_the_work():
    with ThreadPoolExecutor(1) as thread:
        short = ShortWork(thread, longest=1e6)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                short.submit(lambda: 1 / 0).result()


@pytest.mark.parametrize(
    "changed",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu"),
    ],
)
def test_a_thread_in_which_torch_was_set_otherwise_is_told_from_a_new_one(changed):
    assert computes_as_a_new_thread()
    with changed():
        assert not computes_as_a_new_thread()


def test_a_thread_that_flushes_subnormal_numbers_is_told_from_a_new_one():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        assert not computes_as_a_new_thread()
    finally:
        torch.set_flush_denormal(False)


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_run_within_no_grad_is_the_same(carried_out):
    with torch.no_grad():
        result, *_ = carried_out("rounds=3")
    assert result.digest == carried_out("rounds=3")[0].digest
