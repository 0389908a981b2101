"""Data sets as random-access sources of records, by name; and what is known of them without reading a record.

Names: `digits` (ships with scikit-learn), the TFDS data sets of FACTS and any other that is prepared in TFDS's folder
as ArrayRecord (TensorFlow is never needed to read), and `folder:PATH` (images sorted into class folders).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imgcls_jax.data import decode
from imgcls_jax.data.facts import DIGIT_NAMES, FACTS, how_to_prepare, tfds_path
from imgcls_jax.types import ConfigError, Spec, UserError, nearest

_log = logging.getLogger(__name__)

Record = dict[str, Any]

# Splits up to this size, decoded, are held as arrays: reading them then costs no Python per record.
MAX_ARRAY_BYTES = 512 * 2**20

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Source(Protocol):
    """A split of a data set: record i for i in 0 .. len-1, from any thread; picklable, for worker processes.

    A record is a dict: image, uint8 [H,W,C] or the bytes of an image file; label, an int; file, a name or "".
    `__getitem__` raises OSError if the record cannot be read.
    """

    @property
    def spec(self) -> Spec: ...

    @property
    def split(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A split held in memory, or mapped to it.

    Attributes:
      images: [N,H,W,C] uint8.
      labels: [N] int32.
      spec: of the data set.
      split: the split's name.

    Raises:
      UserError: the arrays are not of these types and shapes, or a label is not in 0 .. num_classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray
    spec: Spec
    split: str = "train"

    def __post_init__(self) -> None:
        where = f"{self.spec.name}:{self.split}"
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise UserError(
                f"{where}: images are {self.images.dtype} {list(self.images.shape)}: give uint8 [N,H,W,C], 0 to 255."
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"{where}: labels are {self.labels.dtype} {list(self.labels.shape)}: give int32 [{len(self.images)}]."
            )
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= self.spec.num_classes))
        if bad.size:
            raise UserError(
                f"{where}[{bad[0]}] has label {self.labels[bad[0]]}: expected 0 to {self.spec.num_classes - 1}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.images[index], "label": int(self.labels[index]), "file": ""}


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """A split of an image folder; records are read from their files each time.

    Attributes:
      root: the folder.
      files: paths relative to the root.
      labels: [N] int32.
      spec: of the data set.
      split: the split's name.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    spec: Spec
    split: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        file = self.files[index]
        return {"image": (self.root / file).read_bytes(), "label": int(self.labels[index]), "file": file}


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A split of a TFDS data set in ArrayRecord format; images stay encoded.

    Attributes:
      records: what `tfds.data_source` returned, with decoding of the images skipped.
      spec: of the data set.
      split: the split's name.
    """

    records: Any
    spec: Spec
    split: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        file = record.get("file_name", b"")
        return {
            "image": record["image"],
            "label": int(record["label"]),
            "file": file.decode(errors="replace") if isinstance(file, bytes) else str(file),
        }


def spec(name: str, *, data_dir: str | os.PathLike | None = None) -> Spec:
    """What is known of a data set without reading a record.

    A TFDS data set that is prepared is described by its own metadata, one that is not by what is published of it.

    Args:
      name: digits, a TFDS data set, or folder:PATH.
      data_dir: TFDS's folder; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      ConfigError: the name is not known.
      UserError: the image folder is not usable.
    """
    if name == "digits":
        return Spec("digits", 10, DIGIT_NAMES, {"train": 1437, "test": 360})
    if name.startswith("folder:"):
        return _list_folder(name)[0]
    directory = _prepared(name, data_dir)
    if directory is not None:
        return _tfds_spec(name, directory)
    if name not in FACTS:
        known = ["digits", *FACTS, "folder:PATH"]
        raise ConfigError(
            f"There is no data set '{name}'{nearest(name, known)}, and none of that name is prepared in "
            f"{tfds_dir(data_dir)}; known: {', '.join(known)}."
        )
    facts = FACTS[name]
    return Spec(name, len(facts.class_names), facts.class_names, facts.splits)


def eval_split(spec: Spec) -> str:
    """The split to evaluate on while training: "validation" (or "val") where there is one, else "test"."""
    return next((split for split in ("validation", "val") if split in spec.splits), "test")


def open_source(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> Source:
    """Opens a split of a data set.

    Small data sets come as an `ArraySource`, decoded once and cached under `cache_dir()`; the others give encoded
    images. `digits` is scikit-learn's, 8x8x1, its 0..16 scaled to 0..255, split once and for all: 360 test images,
    stratified by label (`train_test_split(..., test_size=360, random_state=0, stratify=labels)`).

    Args:
      name: digits, a TFDS data set, or folder:PATH.
      split: one of `spec(name).splits`; a folder's "val" is "validation".
      data_dir: TFDS's folder; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      ConfigError: the name or the split is not known.
      UserError: the data set is not prepared (the text says the command that prepares it), or not usable.
    """
    if name.startswith("folder:"):
        folder_spec, splits = _list_folder(name)
        split = "validation" if split == "val" else split
        _check_split(folder_spec, split)
        files, labels = splits[split]
        return FolderSource(Path(name.removeprefix("folder:")), files, labels, folder_spec, split)
    the_spec = spec(name, data_dir=data_dir)
    directory = None if name == "digits" else _prepared(name, data_dir)
    if name != "digits" and directory is None:
        raise UserError(f"{name} is not in {tfds_dir(data_dir)}: {how_to_prepare(name)}")
    _check_split(the_spec, split)
    if directory is None:
        return _digits(the_spec, split)
    return _tfds_source(the_spec, split, directory)


def tfds_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """TFDS's folder: the argument, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_dir() -> Path:
    """Where decoded small data sets are kept: $XDG_CACHE_HOME or ~/.cache, /imgcls_jax/arrays. Safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls_jax" / "arrays"


def _check_split(the_spec: Spec, split: str) -> None:
    if split not in the_spec.splits:
        raise ConfigError(
            f"{the_spec.name} has no split '{split}'{nearest(split, the_spec.splits)}; it has "
            f"{', '.join(the_spec.splits)}."
        )


@functools.cache
def _digits_arrays() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    # Imported here: scikit-learn takes a second that other data sets need not wait for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return {"train": (train_x, train_y), "test": (test_x, test_y)}


def _digits(the_spec: Spec, split: str) -> ArraySource:
    images, labels = _digits_arrays()[split]
    return ArraySource(images, labels, the_spec, split)


# TFDS


def _prepared(name: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The folder of a prepared TFDS data set, of its newest version; None if there is none."""
    parent = tfds_dir(data_dir) / tfds_path(name)
    versions = [p.parent for p in parent.glob("*.*.*/dataset_info.json")]
    versions = [p for p in versions if p.name.replace(".", "").isdigit()]
    return max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


def _tfds_spec(name: str, directory: Path) -> Spec:
    info = json.loads((directory / "dataset_info.json").read_text())
    if info.get("fileFormat") != "array_record":
        raise UserError(
            f"{directory} is in format {info.get('fileFormat', 'tfrecord')}, which has no random access: remove it and "
            f"{how_to_prepare(name)}"
        )
    features = json.loads((directory / "features.json").read_text())["featuresDict"]["features"]
    if not {"image", "label"} <= features.keys() or "classLabel" not in features["label"]:
        raise UserError(f"{directory} has features {', '.join(sorted(features))}: expected an image and a class label.")
    num_classes = int(features["label"]["classLabel"]["numClasses"])
    names = directory / "label.labels.txt"
    class_names = tuple(names.read_text().splitlines()) if names.exists() else tuple(map(str, range(num_classes)))
    splits = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
    return Spec(name, num_classes, class_names, splits)


def _tfds_source(the_spec: Spec, split: str, directory: Path) -> Source:
    features = json.loads((directory / "features.json").read_text())["featuresDict"]["features"]
    shape = [int(n) for n in features["image"]["image"].get("shape", {}).get("dimensions", [-1])]
    if min(shape) < 0 or the_spec.splits[split] * int(np.prod(shape)) > MAX_ARRAY_BYTES:
        return TfdsSource(_tfds_records(directory, split), the_spec, split)
    cached = cache_dir() / f"{the_spec.name}-{split}-{_fingerprint(directory)}"
    if not (cached / "labels.npy").exists():
        try:
            images, labels = _decode_all(_tfds_records(directory, split), the_spec, split, shape)
        except RuntimeError as error:  # ArrayRecord's, for a file that is damaged or missing
            raise UserError(
                f"{directory} is damaged ({error}): remove it and {how_to_prepare(the_spec.name)}"
            ) from error
        try:
            _save_arrays(cached, images, labels)
        except OSError as error:
            _log.warning("%s:%s is decoded anew at each start: %s", the_spec.name, split, error)
            return ArraySource(images, labels, the_spec, split)
    # Mapped, so that processes on one machine share the pages and a start reads only what it uses.
    images = np.asarray(np.load(cached / "images.npy", mmap_mode="r"))
    return ArraySource(images, np.load(cached / "labels.npy"), the_spec, split)


def _tfds_records(directory: Path, split: str) -> Any:
    # Imported here: TFDS takes seconds, and arrays in the cache do without it.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _decode_all(records: Any, the_spec: Spec, split: str, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All images [N,*shape] uint8 and labels [N] int32 of a split."""
    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for start in range(0, len(records), 1000):
        chunk = range(start, min(start + 1000, len(records)))
        for i, record in zip(chunk, records.__getitems__(chunk), strict=True):
            try:
                image = decode.decode(record["image"], shape[-1])
            except decode.BadRecordError as error:
                raise decode.BadRecordError(f"{the_spec.name}:{split}[{i}]: {error}") from error
            if list(image.shape) != shape:
                raise decode.BadRecordError(f"{the_spec.name}:{split}[{i}]: is {image.shape}, expected {shape}")
            images[i] = image
            labels[i] = record["label"]
    return images, labels


def _fingerprint(directory: Path) -> str:
    """Changes whenever the data set is prepared anew or moved: names, sizes and times of its files."""
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(directory.iterdir())]
    return hashlib.blake2b(repr((str(directory.resolve()), stats)).encode(), digest_size=8).hexdigest()


def _save_arrays(target: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images.npy and labels.npy into the folder `target`, which appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as temporary:
        new = Path(temporary) / target.name
        new.mkdir()
        np.save(new / "images.npy", images)
        np.save(new / "labels.npy", labels)
        try:
            new.rename(target)
        except OSError:
            if not (target / "labels.npy").exists():  # else another process was faster, with the same content
                raise


# Image folders


def _list_folder(name: str) -> tuple[Spec, dict[str, tuple[tuple[str, ...], np.ndarray]]]:
    """Lists `folder:PATH`: its spec and, by split, file names relative to PATH and labels [N] int32.

    Layout: PATH/train/CLASS/IMAGE, with PATH/val (or validation) and PATH/test of the same form if there are any. If
    there is neither, or PATH/CLASS/IMAGE without train/, the split is made here, and is the same on every machine: in
    each class the files are put in the order of a hash of CLASS/IMAGE, and the first fifth (rounded, and at least one
    of two or more) are "test". Labels are the classes of train in sorted order. Hidden files are passed over.
    """
    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"Image folder {root} does not exist: give folder:PATH with PATH/train/CLASS/*.jpg.")
    given = {
        split: root / folder
        for folder, split in {"train": "train", "val": "validation", "validation": "validation", "test": "test"}.items()
        if (root / folder).is_dir()
    }
    if given and "train" not in given:
        raise UserError(f"Image folder {root} has {', '.join(p.name for p in given.values())} but no train.")
    classes = _list_classes(given.get("train", root))
    class_names = tuple(classes)
    by_split = {"train": classes}
    if len(given) < 2:
        by_split = {"train": {}, "test": {}}
        for class_name, files in classes.items():
            by_split["test"][class_name], by_split["train"][class_name] = _split_fifth(class_name, files)
    for split, folder in given.items():
        if split != "train":
            by_split[split] = _list_classes(folder)
            if unknown := by_split[split].keys() - classes.keys():
                raise UserError(f"{folder / sorted(unknown)[0]}: this class is not in {given['train']}.")
    splits = {}
    for split, files_by_class in by_split.items():
        base = given[split].name + "/" if split in given else (given["train"].name + "/" if given else "")
        pairs = [(f"{base}{c}/{file}", class_names.index(c)) for c, files in files_by_class.items() for file in files]
        splits[split] = (tuple(f for f, _ in pairs), np.array([label for _, label in pairs], np.int32))
    counts = {split: len(files) for split, (files, _) in splits.items()}
    return Spec(name, len(class_names), class_names, counts), splits


def _list_classes(folder: Path) -> dict[str, list[str]]:
    """Image names by class, both sorted, of folder/CLASS/IMAGE."""
    classes = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir() and not entry.name.startswith("."):
            names = [f.name for f in os.scandir(entry.path) if not f.name.startswith(".")]
            classes[entry.name] = sorted(n for n in names if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES)
            if not classes[entry.name]:
                suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
                raise UserError(f"Class folder {entry.path} has no images ({suffixes}): fill it or remove it.")
    if not classes:
        raise UserError(f"{folder} has no class folders: give folder:PATH with PATH/train/CLASS/*.jpg.")
    return classes


def _split_fifth(class_name: str, files: list[str]) -> tuple[list[str], list[str]]:
    """A fifth of a class's files by hash of their names, and the rest, both sorted."""
    ranked = sorted(files, key=lambda f: hashlib.blake2b(f"{class_name}/{f}".encode(errors="surrogateescape")).digest())
    count = max(1, round(len(files) / 5)) if len(files) > 1 else 0
    return sorted(ranked[:count]), sorted(ranked[count:])
