"""Images with labels from local parquet files, as the Hugging Face hub hands them out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from varangian.files import user_path
from varangian.worker.data.base import DATASETS, DataError, Dataset, check_classes, check_limits
from varangian.worker.data.cache import Rows, load_or_make

IMAGES = ("img", "image", "images")
LABELS = ("label", "labels", "fine_label")
"""Names of columns in use, the likelier ones first."""
TRAIN, TEST = ("train",), ("test", "validation", "valid", "val")
"""Names of the parts in use."""
PATTERNS = ("{}-*.parquet", "{}.parquet", "{}/*.parquet", "{}_*.parquet")
SUBFOLDERS = ("", "data", "plain_text", "default")
"""Subfolders of data files in the repositories of the hub; other subfolders come after them."""
OF = re.compile(r"-(\d+)-of-(\d+)")
NUMBER = re.compile(r"\d+")
BATCH = 1000
Shape: TypeAlias = tuple[int, int, int]
HEAD = 9
"""Bytes before the pixels in a row of the cache: label (4), channels (1), height (2), width (2)."""


@dataclass(frozen=True)
class Columns:
    """The columns to read, and their conversion.

    Args:
        name: of the data set, for messages.
        image: column of the images; None is the first of those in use.
        label: column of the labels; None is the first of those in use.
        shape: channels, height and width of every image; None is that of the first one.
        classes: labels are below this; None is no bound.
    """

    name: str
    image: str | None = None
    label: str | None = None
    shape: Shape | None = None
    classes: int | None = None


@DATASETS.register("parquet")
@dataclass(frozen=True)
class Parquet:
    """Images with labels from local parquet files in the layouts of the Hugging Face hub.

    Grey or in colour, of any size, as the first image is; pixels are from 0 to 1, less `mean` and divided
    by `std`. Decoded images are kept in the user's cache folder.
    """

    path: str
    """The folder with train-*.parquet and test-*.parquet (or train.parquet, or train/*.parquet, and so
    on), or the one above it."""
    image: str | None = None
    """The column of images; null is img, image or images."""
    label: str | None = None
    """The column of labels; null is label, labels or fine_label."""
    classes: int | None = None
    """The number of classes; null is the largest label of the training samples and one."""
    mean: float | tuple[float, ...] = 0.0
    """Of pixels, for all channels or for each."""
    std: float | tuple[float, ...] = 1.0
    train_limit: int | None = None
    """Use only the first training samples."""
    test_limit: int | None = None
    """Use only the first test samples."""

    def __post_init__(self) -> None:
        check_limits(train_limit=self.train_limit, test_limit=self.test_limit)
        check_classes(self.classes)
        if min(as_tuple(self.std)) <= 0:
            raise ValueError(f"`std` should be above 0. Found {self.std}.")

    def load(self) -> Dataset:
        columns = Columns("parquet", self.image, self.label, None, self.classes)
        train_x, train_y, test_x, test_y = load_images(
            self.path, columns, self.train_limit, self.test_limit
        )
        for field in ("mean", "std"):
            if len(as_tuple(getattr(self, field))) not in (1, train_x.shape[1]):
                found = f"Found {len(as_tuple(getattr(self, field)))}"
                raise DataError(f"parquet: `{field}` should have {train_x.shape[1]} values. {found}.")
        shift, scale = (
            tuple(255 * value for value in as_tuple(values)) for values in (self.mean, self.std)
        )
        return Dataset("parquet", self.classes, train_x, train_y, test_x, test_y, shift, scale)


def as_tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def load_images(
    path: str, columns: Columns, train_limit: int | None, test_limit: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, channels, height, width) as bytes and labels (N,), for training and held out."""
    files = parquet_files(columns.name, user_path(path).resolve())
    found = [decode_part(part, paths, columns) for part, paths in files.items()]
    (train_x, train_y), (test_x, test_y) = (
        split(rows[:limit]) for rows, limit in zip(found, (train_limit, test_limit), strict=True)
    )
    return train_x, train_y, test_x, test_y


def parquet_files(name: str, folder: Path) -> dict[str, list[Path]]:
    """The files of both parts, complete."""
    known = [folder / subfolder for subfolder in SUBFOLDERS]
    others = sorted(path for path in folder.glob("*/") if path.is_dir() and path not in known)
    found = [files for place in known if all((files := parts(place)).values())][:1]
    found = found or [files for place in others if all((files := parts(place)).values())]
    if len(found) > 1:
        places = ", ".join(str(files["train"][0].parent.relative_to(folder)) for files in found)
        raise DataError(f"{name}: `path` should be a folder with one data set. Found several: {places}.")
    if not found:
        raise DataError(
            f"{name}: `path` should be a folder with train-*.parquet and test-*.parquet (or train.parquet, "
            f"train/*.parquet, and so on). Found {folder}, {describe_folder(folder)}. Download the data "
            "set in its parquet form and point `path` to it."
        )
    for paths in found[0].values():
        check_complete(name, paths)
    return found[0]


def describe_folder(folder: Path) -> str:
    """The contents of a folder, in short."""
    if not folder.is_dir():
        return "which is a file" if folder.exists() else "which does not exist"
    files = sorted(path.name for path in folder.rglob("*.parquet"))
    return f"with {', '.join(files[:4])}{', ...' if files[4:] else ''}" if files else "with no parquet file"


def parts(folder: Path) -> dict[str, list[Path]]:
    return {"train": part_of(folder, TRAIN), "test": part_of(folder, TEST)}


def part_of(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of the first name and pattern for which there are any."""
    every = (sorted(folder.glob(pattern.format(name))) for name in names for pattern in PATTERNS)
    return next((paths for paths in every if paths), [])


def check_complete(name: str, paths: Sequence[Path]) -> None:
    """Files that are numbered should be there from the first to the last.

    Raises:
        DataError: some are missing, or they are of different sets.
    """
    marks = [mark for path in paths if (mark := OF.search(path.name))]
    if marks:
        totals = {int(mark[2]) for mark in marks}
        if len(totals) > 1 or len(marks) < len(paths):
            found = ", ".join(path.name for path in paths[:6])
            raise DataError(
                f"{name}: the files of a part should be of one set, as N-of-M. Found {found}. Remove"
                " those of the other one."
            )
        numbers, last = [int(mark[1]) for mark in marks], totals.pop()
    elif all(NUMBER.fullmatch(path.stem) for path in paths):
        numbers = [int(path.stem) for path in paths]
        last = max(numbers) + 1
    else:
        return
    missing = sorted(set(range(last)) - set(numbers))
    if missing:
        written = f"{{:05d}}-of-{last:05d}" if marks else f"{{:0{len(paths[0].stem)}d}}.parquet"
        which = ", ".join(written.format(number) for number in missing[:6])
        raise DataError(
            f"{name}: all {last} files of a part should be in {paths[0].parent}. Found {len(numbers)};"
            f" missing: {which}. Download the missing ones."
        )


def decode_part(part: str, files: Sequence[Path], columns: Columns) -> Rows:
    """All samples of some files, from the cache where they have not changed."""
    stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    place = blake2b(repr((str(files[0].parent), columns)).encode(), digest_size=8).hexdigest()
    key = blake2b(repr((HEAD, stamp)).encode(), digest_size=8).hexdigest()
    return load_or_make(f"{columns.name}-{part}-{place}", key, lambda: rows_of(files, columns))


def rows_of(files: Sequence[Path], columns: Columns) -> Rows:
    """The samples of some files, decoded: all images of one shape."""
    shape, found = columns.shape, list[Rows]()
    for file in files:
        try:
            for row in samples(file, columns, shape):
                shape = shape or shape_of(row)
                found.append(row)
        except OSError as error:  # pyarrow's own errors among them
            raise DataError(
                f"{columns.name}: {file} cannot be read: {error}. Download it again."
            ) from error
    return np.stack(found)


def samples(file: Path, columns: Columns, shape: Shape | None) -> Iterator[Rows]:
    parquet, image, label = open_file(file, columns)
    number = 0
    for batch in parquet.iter_batches(BATCH, columns=[image, label]):
        for row in batch.to_pylist():
            here = f"{columns.name}: row {number} of {file}"
            found = encode_row(row[image], row[label], columns.classes, shape, here)
            shape = shape or shape_of(found)
            yield found
            number += 1
    if number == 0:
        raise DataError(f"{columns.name}: {file} should have samples. Found none.")


def open_file(file: Path, columns: Columns) -> tuple[Any, str, str]:
    """A parquet file, and its columns of images and of labels."""
    name = columns.name
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing_package(name, "pyarrow") from error
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{name}: {file} should be a parquet file: {error}. Download it again.") from error
    schema = parquet.schema_arrow

    def images(kind: Any) -> bool:
        encoded = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return bool(encoded or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def chosen(given: str | None, usual: tuple[str, ...], fits: Any) -> str | None:
        wanted = usual if given is None else (given,)
        return next((w for w in wanted if w in schema.names and fits(schema.field(w).type)), None)

    image, label = (
        chosen(columns.image, IMAGES, images),
        chosen(columns.label, LABELS, pa.types.is_integer),
    )
    if image is None or label is None:
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        wanted = [format_columns(columns.image, IMAGES), format_columns(columns.label, LABELS)]
        raise DataError(
            f"{name}: {file} should have the columns {wanted[0]} (images: bytes, or a struct with `bytes`)"
            f" and {wanted[1]} (integers). Found {found}. Name others as data.{name}.image and"
            f" data.{name}.label."
        )
    return parquet, image, label


def format_columns(given: str | None, usual: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in (usual if given is None else (given,)))


def encode_row(cell: Any, label: Any, classes: int | None, shape: Shape | None, here: str) -> Rows:
    """A row of the cache: the head, and then the pixels, channel by channel."""
    encoded = (cell or {}).get("bytes") if isinstance(cell, dict | None) else cell
    if label is None or not 0 <= label < (classes or 1 << 31):
        bound = "0 upwards" if classes is None else f"0 to {classes - 1}"
        raise DataError(f"{here} should have a label from {bound}. Found {label}.")
    if not encoded:
        raise DataError(f"{here} should hold an image. Found nothing.")
    image = decode_image(encoded, shape, here)
    head = np.array([label], "<u4").tobytes() + bytes([image.shape[0]])
    head += np.array(image.shape[1:], "<u2").tobytes()
    return np.concatenate([np.frombuffer(head, np.uint8), image.ravel()])


def decode_image(encoded: bytes, shape: Shape | None, here: str) -> Rows:
    """(channels, height, width) from the bytes of a PNG or JPEG file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package(here.partition(":")[0], "pillow") from error
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{here} should hold an image of 8 bits for each colour. Found more.")
            grey = image.mode in ("1", "L", "LA") if shape is None else shape[0] == 1
            if shape is None or (height, width) == shape[1:]:
                found = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
                return found[None] if grey else found.transpose(2, 0, 1)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for damaged files
        raise DataError(f"{here} should hold a PNG or JPEG image: {error}. Download it again.") from error
    advice = "All images should have one size: resize them first."
    if here.startswith("cifar10"):
        advice = "Images of another size are for data=parquet."
    raise DataError(
        f"{here} should hold an image of {shape[2]}x{shape[1]} pixels. Found {width}x{height}. {advice}"
    )


def shape_of(row: Rows) -> Shape:
    """Channels, height and width, from the head of a row."""
    height, width = np.frombuffer(row[5:HEAD].tobytes(), "<u2").tolist()
    return int(row[4]), height, width


def split(rows: Rows) -> tuple[Tensor, Tensor]:
    """Images (N, channels, height, width), as views of the rows, and labels (N,) int64."""
    x = rows[:, HEAD:].reshape(len(rows), *shape_of(rows[0]))
    labels = np.ascontiguousarray(rows[:, :4]).view("<u4")[:, 0].astype(np.int64)
    return torch.from_numpy(x), torch.from_numpy(labels)


def missing_package(name: str, package: str) -> DataError:
    return DataError(f"{name} needs the package {package}. Install it: pip install 'varangian[cifar10]'.")
