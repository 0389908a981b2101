"""The original files of the MNIST family (idx) and of CIFAR (the binary version), which hold pixels: read whole."""

from __future__ import annotations

import gzip
import math
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from imgcls_jax.data.facts import FACTS
from imgcls_jax.data.prepare_shards import Entry, Original
from imgcls_jax.types import UserError

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

CIFAR_FILES = {
    "cifar10": {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    "cifar100": {"train": ["train.bin"], "test": ["test.bin"]},
}

# By data set, its label columns in the order of the bytes in a record, each with the file of its class names.
CIFAR_LABELS = {
    "cifar10": {"label": "batches.meta.txt"},
    "cifar100": {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
}

# split -> column -> array
Splits = dict[str, dict[str, np.ndarray]]


def read_idx(path: Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes, gzipped or not, as described on the MNIST page.

    Raises:
      UserError: naming the file, if it is damaged or of another type.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): get a fresh copy of it.") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path} is not an idx file of unsigned bytes: get a fresh copy of it.")
    header = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    if len(data) < header or len(data) - header != math.prod(shape):
        raise UserError(
            f"{path} is truncated or damaged: its header promises {math.prod(shape)} bytes of shape {shape}, "
            f"it has {max(0, len(data) - header)}; get a fresh copy of it."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_mnist(files: Mapping[str, Path]) -> Splits:
    """The MNIST family: images [N,28,28,1] uint8 and labels [N] from four idx files keyed as in IDX_FILES."""
    splits: Splits = {}
    for split, (image_file, label_file) in IDX_FILES.items():
        images, labels = read_idx(files[image_file]), read_idx(files[label_file])
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise UserError(
                f"{files[image_file]} has shape {images.shape} and {files[label_file]} has shape {labels.shape}: "
                f"expected [N,H,W] images and [N] labels of the same N."
            )
        if len(labels) and labels.max() > 9:
            raise UserError(f"{files[label_file]} has label {labels.max()}: expected 0 to 9.")
        splits[split] = {"image": images[..., None], "label": labels}
    return splits


def read_cifar(name: str, archive: Path) -> tuple[Splits, dict[str, list[str]]]:
    """CIFAR's binary version: images [N,32,32,3] uint8, label columns [N], and the class names by label column."""
    columns = CIFAR_LABELS[name]
    try:
        with tarfile.open(archive) as tar:
            wanted = {f for files in CIFAR_FILES[name].values() for f in files} | set(columns.values())
            contents = {}
            for member in tar:
                base = member.name.rsplit("/", 1)[-1]
                if member.isfile() and base in wanted:
                    contents[base] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be read ({error}): get a fresh copy of it.") from error
    if missing := wanted - set(contents):
        raise UserError(f"{archive} has no {sorted(missing)[0]}: give the binary version of {name}.")
    names = {column: contents[file].decode().split() for column, file in columns.items()}
    splits: Splits = {}
    for split, files in CIFAR_FILES[name].items():
        data = np.frombuffer(b"".join(contents[file] for file in files), np.uint8)
        if len(data) % (len(columns) + 3072):
            raise UserError(f"{archive} is damaged: {', '.join(files)} is not a whole number of records.")
        records = data.reshape(-1, len(columns) + 3072)
        images = records[:, len(columns) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = {"image": images, **{c: records[:, i] for i, c in enumerate(columns)}}
        splits[split]["id"] = np.array([f"{split}_{i:05d}" for i in range(len(images))])
        for column in columns:
            if len(images) and splits[split][column].max() >= len(names[column]):
                raise UserError(f"{archive} is damaged: {', '.join(files)} has a {column} out of range.")
    return splits, names


def arrays(name: str, files: Mapping[str, Path], scratch: Path) -> Original:
    """MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100, with the images as PNG."""
    del scratch  # small enough for memory
    names: dict[str, list[str]]
    if name in CIFAR_FILES:
        splits, names = read_cifar(name, files["archive"])
    else:
        splits, names = read_mnist(files), {"label": list(FACTS[name].class_names)}
    others = [column for column in next(iter(splits.values())) if column != "image"]
    entries = {}
    for split, columns in splits.items():
        rows = zip(*(columns[column].tolist() for column in others), strict=True)
        images = map(_png, columns["image"])
        entries[split] = [Entry(i, values, png) for i, (values, png) in enumerate(zip(rows, images, strict=True))]
    kinds = {column: tuple(names[column]) if column in names else "text" for column in others}
    height, width, channels = next(iter(splits.values()))["image"].shape[1:]
    return Original(name, FACTS[name].version, kinds, entries, shape=(height, width, channels))


def _png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 [H,W,C]; C is 1 or 3 (RGB)."""
    if image.shape[-1] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()
