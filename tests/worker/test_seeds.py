import itertools
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varangian.config.worker_names import default_names
from varangian.worker.seeds import generator, globally_seeded, stream_seed

PURPOSES = st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=4)


def test_a_stream_is_the_same_on_every_machine():
    assert stream_seed(1, "batch", "w03", 17) == 110789324106021442


@given(PURPOSES, PURPOSES)
def test_other_purposes_have_other_streams(a, b):
    assert (stream_seed(1, *a) == stream_seed(1, *b)) == (a == b)


def test_words_do_not_run_together():
    spellings = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c"), (1, 2), ("1", "2"), (12,), ("12",)]
    assert len({stream_seed(0, *purpose) for purpose in spellings}) == len(spellings)


def test_other_seeds_have_other_streams():
    assert stream_seed(1, "a") != stream_seed(2, "a")


def test_generators_of_one_purpose_draw_the_same_numbers():
    a, b, other = generator(1, "attack"), generator(1, "attack"), generator(1, "batch")
    drawn = torch.rand(8, generator=a)
    assert torch.equal(drawn, torch.rand(8, generator=b))
    assert not torch.equal(drawn, torch.rand(8, generator=other))


def test_global_code_is_seeded_and_leaves_no_trace():
    before = torch.get_rng_state()
    with globally_seeded(1, "initial", device=torch.device("cpu")):
        first = torch.rand(8)
    with globally_seeded(1, "initial", device=torch.device("cpu")):
        again = torch.rand(8)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("n", "first", "last"),
    [(1, "w00", "w00"), (15, "w00", "w14"), (100, "w00", "w99"), (101, "w000", "w100")],
)
def test_names(n, first, last):
    assert (default_names(n)[0], default_names(n)[-1]) == (first, last)


def test_names_sort_as_numbers_do():
    assert all(a < b for a, b in itertools.pairwise(default_names(1234)))


def test_threads_do_not_draw_from_each_other():
    inside, drawn = threading.Event(), list[torch.Tensor]()

    def other():
        with globally_seeded(1, "b", device=torch.device("cpu")):
            inside.set()
            drawn.append(torch.rand(2))

    thread = threading.Thread(target=other)
    with globally_seeded(1, "a", device=torch.device("cpu")):
        whole = torch.rand(4)
    with globally_seeded(1, "a", device=torch.device("cpu")):
        first = torch.rand(2)
        thread.start()
        assert not inside.wait(0.01)
        assert torch.equal(torch.cat([first, torch.rand(2)]), whole)
    thread.join()
    assert len(drawn) == 1
