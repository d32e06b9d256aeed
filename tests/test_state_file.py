"""State files: what is written comes back, and damage is named."""

import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tests.extent import everything, examples

from varangian.state_file import Draft, StateFileError, digest, flatten, head, read, unflatten, write

TENSORS = {
    "b/half": torch.arange(7).bfloat16(),
    "a/wide": torch.tensor([1.5, -0.0, float("inf"), float("nan")], dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "flag": torch.tensor([True, False, True]),
    "number": torch.tensor(3.25),
    "rows": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
}
PLAIN = {"round": 50, "names": ["w00", "w\u00e4", None], "score": 0.1}


def same(first, second):
    return first.dtype == second.dtype and digest(first.contiguous()) == digest(second.contiguous())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "round-000050.safetensors"
    write(path, PLAIN, TENSORS)
    return path


def reason(path):
    with pytest.raises(StateFileError) as caught:
        read(path)
    assert str(caught.value) == f"{path} cannot be used: {caught.value.reason}"
    return caught.value.reason


def test_what_is_written_comes_back(file):
    found = read(file)
    assert {key: found.plain[key] for key in PLAIN} == PLAIN
    assert found.tensors.keys() == TENSORS.keys() == found.plain["tensors"].keys()
    assert all(same(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert head(file) == found.plain
    assert os.listdir(file.parent) == [file.name]


def test_others_can_read_the_tensors(file):
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == TENSORS.keys()
        assert all(same(opened.get_tensor(name), tensor) for name, tensor in TENSORS.items())
        assert json.loads(opened.metadata()["plain"])["round"] == 50


def test_the_number_of_bytes_is_told(tmp_path):
    assert write(tmp_path / "a", PLAIN, TENSORS) == (tmp_path / "a").stat().st_size


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=4).filter(lambda key: not key.startswith("$")), inner, max_size=3
        )
        | st.dictionaries(
            st.sampled_from(["__metadata__", "a/b", "a", "b", "%", "", "0"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and same(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return type(first) is type(second) and (first == second or first != first)


@settings(max_examples=examples(40))
@given(trees)
def test_a_tree_comes_back_through_json_with_tensors_by_name(tree):
    plain, tensors = flatten(tree)
    assert equal(tree, unflatten(json.loads(json.dumps(plain, allow_nan=False)), tensors))


def test_names_of_tensors_are_their_paths():
    _, tensors = flatten({"learner": {"optimizer": [{}, {"step": torch.ones(1)}]}, "": torch.ones(2)})
    assert set(tensors) == {"learner/optimizer/1/step", "%"}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": {"$tensor": "b"}}, r"A key of a should be text without a `\$` before it. Found '\$tensor'"),
        ({"a": {3: 1}}, "A key of a should be text .* Found 3"),
        ({"a": [{1, 2}]}, "a.0 should be a plain value or a tensor. Found set"),
        (object(), "the tree should be a plain value or a tensor. Found object"),
    ],
)
def test_what_cannot_be_kept_is_named(tree, said):
    with pytest.raises(TypeError, match=said):
        flatten(tree)


@pytest.mark.parametrize(
    "plain", [{"$tensor": "gone"}, {"$float": "1e3"}, {"$other": 1}, {"$float": "inf", "more": 1}]
)
def test_what_flatten_does_not_write_is_no_tree(plain):
    with pytest.raises(ValueError, match="Found"):
        unflatten({"a": [plain]}, {})


def test_a_bit_that_flips_anywhere_is_named(file):
    content = file.read_bytes()
    # A file has 1500 bytes; 67 takes each place of a byte in turn.
    for bit in range(0, 8 * len(content), 1 if everything() else 67):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert reason(file).startswith(("it", "its"))


def test_a_damaged_tensor_is_named(file):
    content = bytearray(file.read_bytes())
    content[content.rindex(struct.pack("<f", 11.0))] ^= 1
    file.write_bytes(content)
    assert reason(file) == "its tensor rows is damaged"
    assert head(file)["round"] == 50


def test_a_file_that_ends_early_says_so(file):
    content = file.read_bytes()
    for size in (12, 40, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        assert reason(file) == f"it ends early, after {size} bytes"
    for size in (0, 1, 7):
        file.write_bytes(content[:size])
        assert reason(file) == "it is no file of a state of varangian"
    file.write_bytes(content + b"more")
    assert reason(file) == "it has 4 bytes too many"


def with_header(path, change):
    """The file with another header, of the same tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + length].decode()).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def test_a_newer_file_is_told_from_a_damaged_one(file):
    with_header(file, lambda text: text.replace('"version":"1"', '"version":"2"'))
    assert reason(file) == "it was written by a newer varangian (version 2, this one knows 1)"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('\\"round\\":50', '\\"round\\":51'),
        ('"F32"', '"I32"'),
        ('"shape":[4,3]', '"shape":[3,4]'),
        ('"flag":', '"flog":'),
        ('"number":', '"rows":{},"number":'),
        ('"BOOL"', '"BOOM"'),
        ('"data_offsets":[0,32]', '"data_offsets":[-1,31]'),
        ('"data_offsets":[0,32]', '"data_offsets":[0,1e9]'),
    ],
)
def test_a_header_that_was_changed_is_refused(file, before, after):
    with_header(file, lambda text: text.replace(before, after, 1))
    assert reason(file) in ("its header was changed", "it is no file of a state of varangian") or (
        "is damaged" in reason(file)
    )


def test_a_key_that_stands_twice_is_refused(file):
    with_header(file, lambda text: text.replace('{"__metadata__"', '{"__metadata__":{},"__metadata__"'))
    assert reason(file) == "it is no file of a state of varangian"


def test_a_foreign_file_runs_nothing(file, tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"a": Harmful()}, file)
    assert reason(file) == "it is no file of a state of varangian"
    file.write_bytes(pickle.dumps(Harmful()))
    assert reason(file) == "it is no file of a state of varangian"
    save_file({"a": torch.ones(3)}, file)
    assert reason(file) == "it is no file of a state of varangian"
    file.write_bytes((2).to_bytes(8, "little") + b"[]")
    assert reason(file) == "it is no file of a state of varangian"
    file.write_bytes((50_000).to_bytes(8, "little") + b"[" * 50_000)
    assert reason(file) == "it is no file of a state of varangian"
    assert not (tmp_path / "made").exists()


@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.integers(0, 1600), st.integers(0, 40))
def test_whatever_stands_there_is_one_sentence(file, content, start, length):
    before = file.read_bytes()
    changed = before[:start] + content + before[start + length :]
    file.write_bytes(changed)
    try:
        if changed != before:
            assert reason(file).startswith(("it", "its"))
        file.write_bytes(content)
        assert reason(file) == "it is no file of a state of varangian"
    finally:
        file.write_bytes(before)


def test_a_large_length_takes_no_memory(file):
    file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert reason(file) == "it is no file of a state of varangian"


def test_a_draft_is_not_there_until_it_is_published(file):
    before = file.read_bytes()
    draft = Draft(file, {"round": 51}, {})
    assert file.read_bytes() == before
    assert len(os.listdir(file.parent)) == 2
    draft.publish()
    assert head(file)["round"] == 51
    Draft(file, {"round": 52}, {}).discard()
    assert (head(file)["round"], os.listdir(file.parent)) == (51, [file.name])


def test_what_cannot_be_written_leaves_nothing(file):
    with pytest.raises(TypeError, match=r"a/b should be a tensor of F64, .* Found torch\.complex64"):
        write(file, {"round": 51}, {"a/b": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="JSON"):
        write(file, {"score": float("nan")}, {})
    assert (head(file)["round"], os.listdir(file.parent)) == (50, [file.name])
