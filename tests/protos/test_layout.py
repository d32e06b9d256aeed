import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varangian.protos.layout import TEXT_LIMIT, Layout, LayoutError, first_difference

names = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=20)
shapes = st.lists(st.integers(1, 50), max_size=4).map(tuple)
layouts = st.dictionaries(names, shapes, min_size=1, max_size=6).map(lambda d: Layout(tuple(d.items())))


def test_text_numel_and_digest():
    layout = Layout((("hidden.weight", (64, 32)), ("temperature", ())))
    assert layout.text == "64x32 hidden.weight\nscalar temperature\n"
    assert layout.numel == 64 * 32 + 1
    assert layout.digest == hashlib.blake2b(layout.text.encode(), digest_size=16).digest()


@given(layouts, layouts)
def test_the_difference_is_none_exactly_for_the_same_layout(a, b):
    assert (a.difference(b.text) is None) == (a == b) == (a.digest == b.digest)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ((("a", (2,)), ("b", (4,))), "Parameter 1 should be '3 b', its shape and its name. Found '4 b'."),
        ((("a", (2,)), ("c", (3,))), "Parameter 1 should be '3 b', its shape and its name. Found '3 c'."),
        ((("b", (3,)), ("a", (2,))), "Parameter 0 should be '2 a', its shape and its name. Found '3 b'."),
        ((("a", (2,)),), "The model should have 2 parameters. Found 1: '3 b' is missing."),
        (
            (("a", (2,)), ("b", (3,)), ("c", ())),
            "The model should have 2 parameters. Found 3: 'scalar c' is one too many.",
        ),
    ],
)
def test_the_difference_names_the_first_parameter(other, sentence):
    mine = Layout((("a", (2,)), ("b", (3,))))
    assert mine.difference(Layout(other).text) == sentence


@given(st.text(max_size=200) | st.just("2 ä\n" * TEXT_LIMIT) | st.just("3 a" + "\x1b[2J\n" * 999))
def test_any_other_text_is_one_short_printable_sentence(text):
    mine = Layout((("a", (2,)), ("b", (3,))))
    said = mine.difference(text)
    if text == mine.text:
        assert said is None
    else:
        assert said
        assert said.isprintable()
        assert len(said) < 1000


@given(st.text("ab\n", max_size=40), st.text("ab\n", max_size=40))
def test_where_two_texts_begin_to_differ(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    assert first_difference(one, other) == next((i for i, (a, b) in pairs if a != b), shorter)


def test_a_layout_without_its_last_line_feed_and_a_long_line_are_told_apart():
    name = "a" * 256
    mine = Layout(((name, (1,) * 16),))
    assert "end with a line feed" in mine.difference(mine.text[:-1])
    assert "ab'" in mine.difference(mine.text[:-2] + "b\n")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ((), "at least one parameter"),
        ((("a b", (2,)),), "without spaces"),
        ((("a", (0,)),), "sizes >= 1"),
        ((("a", (2,)), ("a", (3,))), "unique"),
        ((("a", (2**20, 2**20)), ("b", ())), "at most"),
    ],
)
def test_a_model_that_cannot_be_sent_is_refused(entries, words):
    with pytest.raises(LayoutError, match=words):
        Layout(entries)
