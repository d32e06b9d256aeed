"""CIFAR-10 from local files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varangian.worker.data.base import DATASETS, DataError, Dataset, check_limits
from varangian.worker.data.cache import Rows, cached, split

CLASSES = 10
FEATURES = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
"""Of the training set, by channel, for pixels from 0 to 1."""
SUBFOLDERS = ("", "data", "plain_text")
"""Where the parquet files of a data set lie in the repositories of the Hugging Face hub."""
BATCH = 1000


@DATASETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 from local parquet files in the Hugging Face layout.

    "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky, 2009). Decoded images are kept in
    the user's cache folder.
    """

    path: str
    """The folder with train-*.parquet and test-*.parquet, or the one above it."""
    train_limit: int | None = None
    """Use only the first training samples."""
    test_limit: int | None = None
    """Use only the first test samples."""

    def __post_init__(self) -> None:
        check_limits(train_limit=self.train_limit, test_limit=self.test_limit)

    def load(self) -> Dataset:
        files = parquet_files(Path(self.path).expanduser().resolve())
        train_x, train_y = split(decoded("train", files["train"])[: self.train_limit], FEATURES)
        test_x, test_y = split(decoded("test", files["test"])[: self.test_limit], FEATURES)
        shift, scale = (tuple(255 * value for value in values) for values in (MEAN, STD))
        return Dataset("cifar10", CLASSES, train_x, train_y, test_x, test_y, shift, scale)


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    for subfolder in SUBFOLDERS:
        found = {part: sorted((folder / subfolder).glob(f"{part}-*.parquet")) for part in ("train", "test")}
        if all(found.values()):
            return found
    raise DataError(
        f"cifar10: `path` should be a folder with train-*.parquet and test-*.parquet. Found {folder}."
        " Download the data set in its parquet form and point `path` to it."
    )


def decoded(part: str, files: list[Path]) -> Rows:
    """All samples of some files, from the cache where they have not changed."""
    stamp = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    place = blake2b(bytes(files[0].parent), digest_size=8).hexdigest()
    key = blake2b(repr(stamp).encode(), digest_size=8).hexdigest()
    return cached(f"cifar10-{part}-{place}", key, lambda: np.concatenate([*map(rows_of, files)]))


def rows_of(file: Path) -> Rows:
    """The samples of one file, decoded."""
    try:
        return np.stack([*samples(file)])
    except OSError as error:  # pyarrow's own errors among them
        raise DataError(f"cifar10: {file} cannot be read: {error}. Download it again.") from error


def samples(file: Path) -> Iterator[Rows]:
    parquet = opened(file)
    number = 0
    for batch in parquet.iter_batches(BATCH, columns=["img", "label"]):
        for row in batch.to_pylist():
            yield sample(row, f"cifar10: row {number} of {file}")
            number += 1
    if number == 0:
        raise DataError(f"cifar10: {file} should have samples. Found none.")


def opened(file: Path) -> Any:
    """A parquet file with the right columns."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow") from error
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"cifar10: {file} should be a parquet file: {error}. Download it again.") from error
    schema = parquet.schema_arrow
    img, label = (schema.field(name).type if name in schema.names else None for name in ("img", "label"))
    image_column = img is not None and pa.types.is_struct(img) and img.get_field_index("bytes") >= 0
    if not image_column or label is None or not pa.types.is_integer(label):
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(
            f"cifar10: {file} should have the columns `img` (a struct with `bytes`) and `label` (integers)."
            f" Found {found}."
        )
    return parquet


def sample(row: dict[str, Any], here: str) -> Rows:
    """The label and then the pixels, channel by channel."""
    label, content = row["label"], (row["img"] or {}).get("bytes")
    if label is None or not 0 <= label < CLASSES:
        raise DataError(f"{here} should have a label from 0 to {CLASSES - 1}. Found {label}.")
    if not content:
        raise DataError(f"{here} should hold an image. Found nothing.")
    return np.concatenate([np.array([label], dtype=np.uint8), pixels(content, here).ravel()])


def pixels(content: bytes, here: str) -> NDArray[np.uint8]:
    """(3, 32, 32) from the bytes of a PNG or JPEG file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing("pillow") from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            if size == FEATURES[1:]:
                return np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for damaged files
        raise DataError(f"{here} should hold a PNG or JPEG image: {error}. Download it again.") from error
    raise DataError(f"{here} should hold an image of 32x32 pixels. Found {size[0]}x{size[1]}.")


def missing(package: str) -> DataError:
    return DataError(f"cifar10 needs the package {package}. Install it: pip install 'varangian[cifar10]'.")
