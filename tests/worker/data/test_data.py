import io
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from varangian.registry import ConfigError
from varangian.worker.data import (
    DATASETS,
    Cifar10,
    Custom,
    DataError,
    Dataset,
    Digits,
    Parquet,
    Synthetic,
    cache,
)
from varangian.worker.training.losses import LOSSES, CrossEntropy, fit_dataset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")

CPU = torch.device("cpu")
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path, images, labels, image="img", label="label"):
    """A file in the Hugging Face layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    img = pa.array([{"bytes": image, "path": None} for image in images])
    pq.write_table(pa.table({image: img, label: pa.array(labels, pa.int64())}), path)


def tiny(folder, train=20, test=10):
    """Random images, the first ones for training; label i % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [encoded(pixels) for pixels in COLOURS]
    labels = [i % 10 for i in range(len(images))]
    write(folder / "train-00000-of-00001.parquet", images[:train], labels[:train])
    write(folder / "test-00000-of-00001.parquet", images[-test:], labels[-test:])
    return folder


def one_bad_row(folder, image, label=0):
    tiny(folder)
    write(folder / "train-00000-of-00001.parquet", [encoded(COLOURS[0]), image], [0, label])


def test_digits():
    digits = Digits().load()
    assert digits.features == (1, 8, 8)
    assert len(digits.train_y) + len(digits.test_y) == 1797
    x = digits.prepared(digits.train_x, CPU)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, pytest.approx(16 / 6))
    assert x.std() == pytest.approx(1, abs=0.01)


@pytest.mark.exhaustive
def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = Digits().load()
    pixels = torch.cat([digits.train_x, digits.test_x]).flatten(1).double().sum(dim=0)
    assert torch.equal(pixels, torch.from_numpy(load_digits().data).sum(dim=0))


def test_digits_hold_out_one_fifth_of_each_class():
    digits = Digits().load()
    train, test = digits.train_y.bincount(), digits.test_y.bincount()
    assert (test / (train + test) - 0.2).abs().max() < 0.003


def test_the_second_process_reads_digits_without_scikit_learn(monkeypatch):
    first = Digits().load()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert torch.equal(Digits().load().test_x, first.test_x)


def test_cifar10(tmp_path):
    data = Cifar10(str(tiny(tmp_path))).load()
    assert data.features == (3, 32, 32)
    assert torch.equal(data.train_x, torch.from_numpy(COLOURS[:20]).permute(0, 3, 1, 2))
    assert torch.equal(data.test_x, torch.from_numpy(COLOURS[-10:]).permute(0, 3, 1, 2))
    assert data.train_y.tolist() == [*range(10)] * 2
    assert data.train_x.dtype == torch.uint8


def test_cifar10_is_normalised_by_channel(tmp_path):
    data = Cifar10(str(tiny(tmp_path))).load()
    x = data.prepared(data.train_x, CPU)
    expected = (COLOURS[3, 5, 7] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    assert torch.allclose(x[3, :, 5, 7], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


@pytest.mark.parametrize("subfolder", ["", "data", "plain_text"])
def test_cifar10_finds_the_folders_of_the_hub(tmp_path, subfolder):
    tiny(tmp_path / subfolder)
    assert len(Cifar10(str(tmp_path)).load().train_y) == 20


def test_cifar10_reads_several_files_in_order_and_jpeg(tmp_path):
    tiny(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-00000-of-00002.parquet")
    flat = np.full((32, 32, 3), 90, dtype=np.uint8)
    write(tmp_path / "train-00001-of-00002.parquet", [encoded(flat, "JPEG")], [7])
    data = Cifar10(str(tmp_path)).load()
    assert data.train_y.tolist() == [*range(10)] * 2 + [7]
    assert (data.train_x[-1].int() - 90).abs().max() <= 2


def test_cifar10_limits(tmp_path):
    data = Cifar10(str(tiny(tmp_path)), train_limit=7, test_limit=3).load()
    assert (data.train_y.tolist(), len(data.test_y)) == ([*range(7)], 3)


def test_cifar10_comes_from_the_cache_until_the_files_change(tmp_path, monkeypatch):
    Cifar10(str(tiny(tmp_path))).load()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert len(Cifar10(str(tmp_path)).load().train_y) == 20
    tiny(tmp_path, train=25)
    assert len(Cifar10(str(tmp_path)).load().train_y) == 25
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert len(Cifar10(str(tmp_path)).load().train_y) == 25


def test_cifar10_without_its_packages(tmp_path, monkeypatch):
    for package in ("pyarrow", "PIL"):
        folder = tiny(tmp_path / package)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(DataError, match=r"pip install 'varangian\[cifar10\]'"):
                Cifar10(str(folder)).load()


def test_cifar10_without_files(tmp_path):
    with pytest.raises(DataError, match=r"train-\*\.parquet and test-\*\.parquet"):
        Cifar10(str(tmp_path / "nowhere")).load()
    tiny(tmp_path).joinpath("test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"train-\*\.parquet and test-\*\.parquet"):
        Cifar10(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"picture": [b"x"], "label": [1]}, "picture: binary, label: int64"),
        ({"img": ["x"], "label": [1]}, "img: string, label: int64"),
        ({"img": [{"bytes": b"x"}]}, "img: struct<bytes: binary>"),
        ({"img": [{"bytes": b"x"}], "label": ["cat"]}, "label: string"),
    ],
)
def test_cifar10_with_other_columns(tmp_path, table, found):
    tiny(tmp_path)
    pq.write_table(pa.table(table), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=rf"columns `img`.*Found.*{found}"):
        Cifar10(str(tmp_path)).load()


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        (b"\x89PNG no image at all", 0, "PNG or JPEG"),
        (encoded(COLOURS[0])[:200], 0, "PNG or JPEG"),
        (None, 0, "hold an image. Found nothing"),
        (encoded(COLOURS[0][:30]), 0, "32x32 pixels. Found 32x30"),
        (encoded(COLOURS[0]), 10, "label from 0 to 9. Found 10"),
        (encoded(COLOURS[0]), -1, "label from 0 to 9. Found -1"),
        (encoded(COLOURS[0]), None, "label from 0 to 9. Found None"),
    ],
)
def test_cifar10_names_the_row_that_is_wrong(tmp_path, image, label, words):
    one_bad_row(tmp_path, image, label)
    with pytest.raises(DataError, match=f"row 1 of .*train-00000-of-00001.*{words}"):
        Cifar10(str(tmp_path)).load()


@pytest.mark.parametrize("content", [b"", b"PAR1 and then something else", b"PAR1" * 20])
def test_cifar10_with_a_damaged_file(tmp_path, content):
    tiny(tmp_path).joinpath("train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(DataError, match="Download it again"):
        Cifar10(str(tmp_path)).load()


def test_cifar10_with_an_empty_file(tmp_path):
    tiny(tmp_path)
    schema = pa.schema([("img", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
    pq.write_table(schema.empty_table(), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"should have samples\. Found none"):
        Cifar10(str(tmp_path)).load()


def bare(folder, train, test, count=4, side=6, mode="L", **columns):
    """Random images of another kind in files of these names."""
    kind = Image.fromarray(COLOURS[0][:side, :side]).convert(mode)
    for name in (*train, *test):
        write(folder / name, [encoded(np.asarray(kind))] * count, [*range(count)], **columns)
    return str(folder)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train.parquet"], ["test.parquet"]),
        (["train/0000.parquet", "train/0001.parquet"], ["test/0000.parquet"]),
        (["mnist/train-00000-of-00001.parquet"], ["mnist/validation-00000-of-00001.parquet"]),
        (["plain_text/train/0000.parquet"], ["plain_text/test/0000.parquet"]),
    ],
)
def test_parquet_reads_the_layouts_in_use(tmp_path, train, test):
    path = bare(tmp_path, train, test, image="image", label="labels")
    data = Parquet(path, mean=0.5, std=0.5).load()
    assert data.features == (1, 6, 6)
    assert data.train_y.tolist() == [0, 1, 2, 3] * len(train)
    assert -1 <= data.prepared(data.train_x, CPU).min() < data.prepared(data.train_x, CPU).max() <= 1


def test_parquet_takes_columns_by_name_and_other_sizes(tmp_path):
    path = bare(tmp_path, ["train.parquet"], ["test.parquet"], 300, 5, "RGB", image="photo", label="kind")
    with pytest.raises(DataError, match=r"columns `img` or `image`.*Found photo.*data\.parquet\.image"):
        Parquet(path).load()
    data = Parquet(path, image="photo", label="kind", train_limit=290, classes=300).load()
    assert (data.features, data.classes, data.train_y[-1]) == ((3, 5, 5), 300, 289)
    with pytest.raises(DataError, match=r"cifar10.*32x32 pixels\. Found 5x5"):
        Cifar10(path, image="photo", label="kind").load()


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (["train-00000-of-00002.parquet"], "Found 1; missing: 00001-of-00002"),
        (
            ["train-00001-of-00003-8f0.parquet", "train-00002-of-00003-9c1.parquet"],
            "missing: 00000-of-00003",
        ),
        (["train-00000-of-00001.parquet", "train-00001-of-00002.parquet"], "of one set"),
        (["train/0000.parquet", "train/0002.parquet"], r"missing: 0001\.parquet"),
    ],
)
def test_missing_parts_of_a_set_are_refused(tmp_path, train, words):
    path = bare(tmp_path, train, ["test.parquet"])
    with pytest.raises(DataError, match=words):
        Parquet(path).load()


def test_several_data_sets_in_one_folder_are_asked_for(tmp_path):
    for name in ("cats", "dogs"):
        bare(tmp_path / name, ["train.parquet"], ["test.parquet"])
    with pytest.raises(DataError, match="Found several: cats, dogs"):
        Parquet(str(tmp_path)).load()


@pytest.mark.parametrize("fields", [{"train_limit": 0}, {"test_limit": -1}])
def test_cifar10_with_a_bad_limit(fields):
    with pytest.raises(ConfigError, match="null for all"):
        DATASETS.build({"cifar10": {"path": "x", **fields}}, "data")


def rows(value=1):
    return np.full((3, 5), value, dtype=np.uint8)


def other_rows():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 5)))
    return file.getvalue()


def broken():
    raise AssertionError("made again")


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "varangian"


def test_the_cache_makes_a_thing_once(cache_folder):
    assert np.array_equal(cache.load_or_make("a", "1", rows), rows())
    assert np.array_equal(cache.load_or_make("a", "1", broken), rows())
    assert not [*cache_folder.glob("*.tmp")]


def test_many_who_want_a_thing_at_once_make_it_once(cache_folder):
    made = []

    def make():
        made.append(1)
        time.sleep(0.05)  # long enough for the others to come
        return rows()

    with ThreadPoolExecutor(8) as executor:
        found = [*executor.map(lambda _: cache.load_or_make("a", "1", make), range(32))]
    assert len(made) == 1
    assert all(np.array_equal(one, rows()) for one in found)


def test_writing_to_cached_rows_does_not_change_the_cache(cache_folder):
    cache.load_or_make("a", "1", rows)[:] = 9
    assert np.array_equal(cache.load_or_make("a", "1", broken), rows())


def test_a_new_key_replaces_the_old_file_of_this_name_only(cache_folder):
    for name, key in [("a", "1"), ("b", "1"), ("a", "2")]:
        cache.load_or_make(name, key, rows)
    assert sorted(path.name for path in cache_folder.glob("*.npy")) == ["a-2.npy", "b-1.npy"]


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-3], lambda b: b"not an array", lambda b: other_rows()]
)
def test_a_damaged_cache_is_made_again(cache_folder, damage):
    cache.load_or_make("a", "1", rows)
    path = cache_folder / "a-1.npy"
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(cache.load_or_make("a", "1", lambda: rows(2)), rows(2))
    assert np.array_equal(cache.load_or_make("a", "1", broken), rows(2))


def test_without_a_place_for_the_cache_data_is_still_read(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("this is a file, not a folder")
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path / "home"))
    assert np.array_equal(cache.load_or_make("a", "1", rows), rows())


def test_a_full_disk_leaves_nothing_behind(cache_folder, monkeypatch):
    def save(file, array):
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)
    assert np.array_equal(cache.load_or_make("a", "1", rows), rows())
    assert [path.name for path in cache_folder.iterdir()] == ["a.lock"]


def test_a_failure_is_not_cached(cache_folder):
    with pytest.raises(AssertionError, match="made again"):
        cache.load_or_make("a", "1", broken)
    assert np.array_equal(cache.load_or_make("a", "1", rows), rows())


def test_synthetic_blobs_can_be_told_apart():
    data = Synthetic(classes=3, features=(2, 4), train=30, test=9, spread=0.01).load()
    assert data.features == (2, 4)
    assert data.train_y.bincount().tolist() == [10, 10, 10]
    centres = torch.stack([data.train_x[data.train_y == label].mean(dim=0) for label in range(3)])
    nearest = torch.cdist(data.test_x.flatten(1), centres.flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, data.test_y)
    assert torch.equal(
        Synthetic(classes=3, features=(2, 4), train=30, test=9, spread=0.01).load().test_x, data.test_x
    )
    assert not torch.equal(Synthetic(seed=1).load().train_x, Synthetic().load().train_x)


@pytest.mark.parametrize(
    "fields", [{"classes": 0}, {"train": 0}, {"features": 0}, {"features": []}, {"spread": -1.0}]
)
def test_synthetic_with_bad_settings(fields):
    with pytest.raises(ConfigError, match="should be"):
        DATASETS.build({"synthetic": fields}, "data")


X, Y = torch.rand(6, 2), torch.arange(6) % 3
CROSS_ENTROPY = CrossEntropy()


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """A module of the user's whose function returns whatever `options` hold; read for a loss of classes."""
    (tmp_path / "my_data.py").write_text("def make(made):\n    return made\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return lambda made, loss=CROSS_ENTROPY, **fields: fit_dataset(
        Custom("my_data:make", {"made": made}, **fields).load(), loss
    )


def test_custom_data_from_arrays(mine):
    data = mine((X.numpy().astype("float64"), Y.numpy().astype("int32"), X, Y))
    assert (data.classes, data.features, data.train_x.dtype) == (3, (2,), torch.float32)
    images = mine((torch.full((6, 1, 2, 2), 255, dtype=torch.uint8), Y) * 2)
    assert bool((images.prepared(images.train_x, CPU) == 1).all())


def test_custom_data_from_a_dataset(mine):
    made = mine(Dataset("mine", 4, X, Y, X, Y))
    assert (made.name, made.classes) == ("mine", 4)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (None, "should return a Dataset"),
        ((X, Y), "should return a Dataset"),
        ((X, Y[:5], X, Y), r"training samples should have one label each.*\[6, 2\].*\[5\]"),
        ((X, Y, X[:0], Y[:0]), "test samples should have one label each, and be at least one"),
        ((X[:0], Y[:0], X, Y), "training samples should have one label each, and be at least one"),
        ((X, Y, X, Y + 1), "labels from 0 to 2. Found 1 to 3"),
        (
            (X, Y - 1, X, Y),
            r"labels from 0 on\. Found -1 to 1\. Others become such labels with torch.unique",
        ),
        ((X, Y, torch.rand(6, 3), Y), r"one shape\. Found \[2\] and \[3\]"),
        ((X / 0, Y, X, Y), "finite"),
        (Dataset, "should return a Dataset"),
    ],
)
def test_custom_data_that_cannot_be_used(mine, made, words):
    with pytest.raises(DataError, match=words):
        mine(made)


NUMBERS = torch.tensor([0.0, 0.7, 1.0, 2.5, 0.1, 3.0])
TOKENS = torch.arange(12).view(6, 2)


def test_integers_stay_integers_and_labels_may_be_whole_floats(mine):
    data = mine((TOKENS.int(), Y.double(), TOKENS.int(), Y.double()))
    assert data.prepared(data.train_x, CPU).dtype == torch.int32
    assert (data.train_y.dtype, data.classes, data.outputs) == (torch.int64, 3, 3)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (NUMBERS, r"whole numbers as class labels.*Found 0\.7.*loss=mse"),
        (torch.eye(6), r"one label each.*\[6, 6\].*argmax"),
        (Y[:, None], r"one label each.*\[6, 1\].*squeeze"),
        ({"a": Y}, "one tensor of labels"),
    ],
)
def test_targets_that_are_no_class_labels(mine, y, words):
    with pytest.raises(DataError, match=words):
        mine((X, y, X, y))


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", {"custom": {"target": "torch:dist"}}])
def test_numbers_are_targets_of_other_losses(mine, loss):
    data = mine(
        (X, torch.stack([NUMBERS / 3] * 3, dim=1).double(), X, torch.zeros(6, 3)), LOSSES.build(loss, "")
    )
    assert (data.classes, data.outputs, data.train_y.dtype) == (None, 3, torch.float32)
    assert data.labels is None


def test_a_binary_cross_entropy_takes_numbers_from_0_to_1(mine):
    with pytest.raises(DataError, match=r"from 0 to 1 with `loss` bce_with_logits\. Found 0 to 3"):
        mine((X, NUMBERS, X, NUMBERS), LOSSES.build("bce_with_logits", ""))


def test_arrays_of_other_kinds_and_lists_of_tensors(mine):
    numbers = X.numpy()
    for other in (numbers.astype(">f4"), numbers.astype("longdouble"), [*X]):
        assert torch.equal(mine((other, [*Y], X, Y)).train_x, X)


def test_a_label_for_each_token(mine):
    labels = TOKENS.clone()
    labels[:, 1] = -100
    data = mine((TOKENS, labels, TOKENS, labels))
    assert (data.classes, data.labels) == (11, None)


def test_the_number_of_classes_can_be_stated(mine):
    assert mine((X, Y, X, Y), classes=7).classes == 7
    with pytest.raises(DataError, match=r"labels from 0 to 1\. Found 0 to 2.*data\.custom\.classes"):
        mine((X, Y, X, Y), classes=2)


def test_samples_of_several_tensors(mine):
    both = {"ids": TOKENS, "weights": X.double()}
    data = mine((both, Y, both, Y))
    assert data.features == {"ids": (2,), "weights": (2,)}
    assert [tensor.dtype for tensor in data.prepared(both, CPU).values()] == [torch.int64, torch.float32]
    assert mine(((X, X), Y, (X, X), Y)).features == ((2,), (2,))
    with pytest.raises(DataError, match=r"\['weights'\] \[5, 2\]"):
        mine(({"ids": TOKENS, "weights": X[:5]}, Y, both, Y))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((32, 32, 3), "channels last"),
        ((8, 8, 1), "channels last"),
        ((28, 28), "images or token ids"),
        ((12,), "images or token ids"),
    ],
)
def test_bytes_that_may_be_something_else_are_asked_for(mine, shape, words):
    x = torch.randint(0, 255, (6, *shape), dtype=torch.uint8)
    with pytest.raises(DataError, match=f"{words}.*data.custom.uint8: images, images_last"):
        mine((x, Y, x, Y))
    tokens = mine((x, Y, x, Y), uint8="integers")
    assert torch.equal(tokens.prepared(tokens.train_x, CPU), x.long())
    if len(shape) == 3:
        images = mine((x, Y, x, Y), uint8="images_last")
        assert torch.equal(images.prepared(images.train_x, CPU), x.permute(0, 3, 1, 2) / 255)


def test_a_dataset_of_bytes_says_what_they_are():
    x = torch.zeros(6, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"scale=\(255\.0,\)"):
        Dataset("mine", 3, x, Y, x, Y)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("json:loads", r"`data` 'json:loads' is called with \(made=\), which it does not take"),
        ("no_such_module:make", "'no_such_module:make' cannot be imported.*No module named"),
        ("broken:make", r"'broken:make' cannot be imported.*SyntaxError.*broken.py, line 2"),
        ("failing:make", r"`data` 'failing:make' failed: KeyError: 'img' \(.*failing.py, line 4\)"),
        ("failing:leave", r"'failing:leave' failed: it called sys.exit\(3\)"),
        ("failing:mkae", r"no 'mkae'\. Did you mean 'make'"),
    ],
)
def test_a_custom_function_that_fails(tmp_path, monkeypatch, target, words):
    (tmp_path / "broken.py").write_text("def make(made):\n    return (\n")
    (tmp_path / "failing.py").write_text(
        "import sys\n\ndef make(made):\n    return {}['img']\n\ndef leave(made):\n    sys.exit(3)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(DataError, match=words):
        Custom(target, {"made": 1}).load()


@pytest.mark.parametrize("made", [[["a"], Y, X, Y], (X, object(), X, Y), ([[1], [1, 2]], Y, X, Y)])
def test_custom_data_that_is_no_tensor(mine, made):
    with pytest.raises(DataError, match=r"my_data:make.*as tensors failed"):
        mine(made)
