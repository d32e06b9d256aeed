import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varangian.protos.layout import TEXT_LIMIT, Layout, LayoutError

names = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=20)
shapes = st.lists(st.integers(1, 50), max_size=4).map(tuple)
layouts = st.dictionaries(names, shapes, min_size=1, max_size=6).map(lambda d: Layout(tuple(d.items())))


def test_text_numel_and_digest():
    layout = Layout((("hidden.weight", (64, 32)), ("temperature", ())))
    assert layout.text == "64x32 hidden.weight\nscalar temperature\n"
    assert layout.numel == 64 * 32 + 1
    assert layout.digest == hashlib.blake2b(layout.text.encode(), digest_size=16).digest()


@given(layouts)
def test_parse_undoes_text(layout):
    assert Layout.parse(layout.text) == layout


@given(layouts, layouts)
def test_the_difference_is_none_exactly_for_the_same_layout(a, b):
    assert (a.difference(b) is None) == (a == b) == (a.digest == b.digest)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ((("a", (2,)), ("b", (4,))), "Parameter 1 should be 'b' of shape [3]. Found 'b' of shape [4]."),
        ((("a", (2,)), ("c", (3,))), "Parameter 1 should be 'b' of shape [3]. Found 'c' of shape [3]."),
        ((("b", (3,)), ("a", (2,))), "Parameter 0 should be 'a' of shape [2]. Found 'b' of shape [3]."),
        ((("a", (2,)),), "The model should have 2 parameters. Found 1: 'b' of shape [3] is missing."),
        (
            (("a", (2,)), ("b", (3,)), ("c", ())),
            "The model should have 2 parameters. Found 3: 'c' of shape [] is one too many.",
        ),
    ],
)
def test_the_difference_names_the_first_parameter(other, sentence):
    mine = Layout((("a", (2,)), ("b", (3,))))
    assert mine.difference(Layout(other)) == sentence


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "2x3 a",
        "2x3 a\n\n",
        "2x3 a\r\n",
        "2x3  a\n",
        "02 a\n",
        "0 a\n",
        "-1 a\n",
        "2x a\n",
        " a\n",
        "2\n",
        "٣ a\n",
        "2 a\n3 a\n",
        "2 a\x00\n",
        "2 a\u2028b\n",
        "x".join(["2"] * 17) + " a\n",
        "9" * 14 + " a\n",
        "1100000x1000000 a\n",
        "2 " + "a" * 257 + "\n",
        "2 a\n" + " " * TEXT_LIMIT,
        "2 ä\n" * TEXT_LIMIT,
    ],
)
def test_what_is_no_layout_is_refused_in_one_short_sentence(text):
    with pytest.raises(LayoutError) as caught:
        Layout.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=200))
def test_any_text_is_a_layout_or_an_error(text):
    with contextlib.suppress(LayoutError):
        assert Layout.parse(text).text == text


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
