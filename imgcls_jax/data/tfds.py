"""Data sets of TFDS, prepared as ArrayRecord: read without TFDS, small ones from a cache of decoded arrays.

What is in a prepared folder says all that is needed: any data set with an image and one class label, or several, can
be read, whoever prepared it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_jax.data import decode, examples, facts
from imgcls_jax.data.arrays import ArraySource
from imgcls_jax.data.protocol import Record, Source
from imgcls_jax.types import Spec, UserError

_log = logging.getLogger(__name__)

# Splits up to this size, decoded, are held as arrays: reading them then costs no Python per record.
MAX_ARRAY_BYTES = 512 * 2**20

# Features that name the original file or photograph, in the order in which they are looked for.
_FILE_FEATURES = ("file_name", "file_id", "id")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """A split of a TFDS data set in ArrayRecord format; images stay encoded.

    Attributes:
      records: the split's shards, an ArrayRecordDataSource: serialised examples.
      spec: of the data set.
      split: the split's name.
      directory: the prepared data set.
      label_feature: the feature with the class, or a list of classes.
      file_feature: the feature that names the original file; "" if there is none.
    """

    records: Any
    spec: Spec
    split: str
    directory: Path
    label_feature: str
    file_feature: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        try:
            record = examples.parse(self.records[index], ("image", self.label_feature, self.file_feature))
            image, label = _one(record, "image"), self.label(record)
        except (RuntimeError, ValueError) as error:  # of ArrayRecord, or of what is in the record
            raise OSError(f"{self.directory} is damaged ({error})") from error
        file = next(iter(record.get(self.file_feature, [])), b"")
        return {
            "image": image,
            "label": label,
            "file": file.decode(errors="replace") if isinstance(file, bytes) else str(file),
        }

    def label(self, record: dict[str, list[Any]]) -> int | np.ndarray:
        """The label of a parsed record: an int, or [K] float32 of 0 and 1; ValueError if it is none."""
        if self.spec.task == "multiclass":
            return int(_one(record, self.label_feature))
        several = np.zeros(self.spec.num_classes, np.float32)
        for label in record.get(self.label_feature, []):
            if not 0 <= label < self.spec.num_classes:
                raise ValueError(f"a record has class {label} of {self.spec.num_classes}")
            several[label] = 1
        return several

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
        """Some features of all records, numbered, read by the hundred: together, in memory that is soon used again."""
        for start in range(0, len(self), 100):
            chunk = range(start, min(start + 100, len(self)))
            for i, raw in zip(chunk, self.records.__getitems__(chunk), strict=True):
                yield i, examples.parse(raw, names)

    def labels(self) -> np.ndarray:
        """[N] int32 or [N,K] float32; every record is read for it, once: the labels are kept in `cache_dir()`."""
        cached = _cached(self, "labels")
        if not cached.exists():
            _log.warning("%s:%s: reading all labels; they are kept in %s.", self.spec.name, self.split, cached)
            labels = _empty_labels(self)
            with _naming_damage(self):
                for i, record in self.chunks((self.label_feature,)):
                    labels[i] = self.label(record)
            if not _save(self, cached, labels=labels):
                return labels
        return np.load(cached / "labels.npy")

    def weights(self) -> None:
        """TFDS knows no weights."""


def tfds_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """TFDS's folder: the argument, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def cache_dir() -> Path:
    """Where decoded small data sets are kept: $XDG_CACHE_HOME or ~/.cache, /imgcls_jax/arrays. Safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls_jax" / "arrays"


def prepared(name: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The folder of a prepared data set, of its newest version; None if there is none.

    Args:
      name: "cifar10", or with one of TFDS's configurations "imagenet_v2/topimages"; without, the published default.
      data_dir: TFDS's folder.
    """
    parent = tfds_dir(data_dir) / name
    default = facts.default_config(name)
    for folder in (parent, parent / default if default else parent):
        versions = [p.parent for p in folder.glob("*.*.*/dataset_info.json")]
        versions = [p for p in versions if p.name.replace(".", "").isdigit()]
        if versions:
            return max(versions, key=lambda p: tuple(map(int, p.name.split("."))))
    return None


def describe(name: str, directory: Path) -> Spec:
    """The spec of a prepared data set, from its own metadata.

    Raises:
      UserError: it is not in ArrayRecord format, or has no image, or no class label.
    """
    info = json.loads((directory / "dataset_info.json").read_text())
    if info.get("fileFormat") != "array_record":
        raise UserError(
            f"{directory} is in format {info.get('fileFormat', 'tfrecord')}, which has no random access: remove it and "
            f"{facts.how_to_prepare(name)}"
        )
    features = _features(directory)
    label = _label_feature(directory)
    if "image" not in features or label is None:
        raise UserError(f"{directory} has features {', '.join(sorted(features))}: expected an image and a class label.")
    several = "sequence" in features[label]
    feature = features[label]["sequence"]["feature"] if several else features[label]
    num_classes = int(feature["classLabel"]["numClasses"])
    names = directory / f"{label}.labels.txt"
    class_names = tuple(names.read_text().splitlines()) if names.exists() else tuple(map(str, range(num_classes)))
    splits = {s["name"]: sum(map(int, s["shardLengths"])) for s in info["splits"]}
    return Spec(name, num_classes, class_names, splits, "multilabel" if several else "multiclass")


def open_split(spec: Spec, split: str, directory: Path) -> Source:
    """A whole split of a prepared data set that `describe` described; TFDS stores its records shuffled.

    Raises:
      UserError: the data set is damaged.
    """
    label_feature = _label_feature(directory)
    assert label_feature is not None
    file_feature = next((name for name in _FILE_FEATURES if name in _features(directory)), "")
    shape = [int(n) for n in _features(directory)["image"]["image"].get("shape", {}).get("dimensions", [-1])]
    source = TfdsSource(None, spec, split, directory, label_feature, file_feature)
    in_memory = min(shape) >= 0 and spec.splits[split] * int(np.prod(shape)) <= MAX_ARRAY_BYTES
    cached = _cached(source, "")
    if not in_memory or not cached.exists():
        source = dataclasses.replace(source, records=_records(spec, split, directory))
    if not in_memory:
        return source
    if not cached.exists():
        images, labels = _decode_all(source, shape)
        if not _save(source, cached, images=images, labels=labels):
            return ArraySource(images, labels, spec, split)
    # Mapped, so that processes on one machine share the pages and a start reads only what it uses.
    images = np.asarray(np.load(cached / "images.npy", mmap_mode="r"))
    return ArraySource(images, np.load(cached / "labels.npy"), spec, split)


def _features(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "features.json").read_text())["featuresDict"]["features"]


def _label_feature(directory: Path) -> str | None:
    """The feature with the class or classes: what TFDS supervises with, else "label"; None if there is none."""
    features = _features(directory)
    info = json.loads((directory / "dataset_info.json").read_text())
    supervised = [item.get("featureKey") for item in info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])]
    for name in [*supervised[1:], "label"]:
        feature = features.get(name, {})
        if "classLabel" in feature.get("sequence", {}).get("feature", feature):
            return name
    return None


def _records(spec: Spec, split: str, directory: Path) -> Any:
    """The serialised examples of a whole split, in the order of its shards; UserError if a shard is missing."""
    # Imported here: it takes a while, and arrays in the cache do without it.
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    info = json.loads((directory / "dataset_info.json").read_text())
    found = next(s for s in info["splits"] if s["name"] == split)
    template = found.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    fixed = {"DATASET": info["name"], "SPLIT": split, "FILEFORMAT": "array_record"}
    count = len(found["shardLengths"])
    there = {path.name for path in directory.iterdir()}
    shards = []
    for i, length in enumerate(map(int, found["shardLengths"])):
        index, of = f"{i:05d}", f"{count:05d}"
        name = template.format(**fixed, SHARD_INDEX=index, NUM_SHARDS=of, SHARD_X_OF_Y=f"{index}-of-{of}")
        if name not in there:
            again = facts.how_to_prepare(spec.name)
            raise UserError(f"{directory} is damaged ({name} is missing): remove it and {again}")
        if length:
            shards.append(f"{directory / name}[0:{length}]")  # told how many records there are, it opens no file yet
    return ArrayRecordDataSource(shards)


def _one(record: dict[str, list[Any]], name: str) -> Any:
    values = record.get(name, [])
    if len(values) != 1:
        raise ValueError(f"a record has {len(values)} values of {name}")
    return values[0]


def _decode_all(source: TfdsSource, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All images [N,*shape] uint8 and labels, [N] int32 or [N,K] float32, of a split."""
    images, labels = np.empty((len(source), *shape), np.uint8), _empty_labels(source)
    where = f"{source.spec.name}:{source.split}"
    with _naming_damage(source):
        for i, record in source.chunks(("image", source.label_feature)):
            try:
                image = decode.decode(_one(record, "image"), shape[-1])
            except decode.BadRecordError as error:
                raise decode.BadRecordError(f"{where}[{i}]: {error}") from error
            if list(image.shape) != shape:
                raise decode.BadRecordError(f"{where}[{i}]: is {image.shape}, expected {shape}")
            images[i], labels[i] = image, source.label(record)
    return images, labels


def _empty_labels(source: TfdsSource) -> np.ndarray:
    several = source.spec.task == "multilabel"
    shape = (len(source), source.spec.num_classes) if several else (len(source),)
    return np.empty(shape, np.float32 if several else np.int32)


@contextlib.contextmanager
def _naming_damage(source: TfdsSource) -> Iterator[None]:
    """Turns the errors of a file that is damaged, ArrayRecord's and those of its records, into the user's."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        again = facts.how_to_prepare(source.spec.name)
        raise UserError(f"{source.directory} is damaged ({error}): remove it and {again}") from error


def _cached(source: TfdsSource, kind: str) -> Path:
    """The folder in the cache; its name changes whenever the data set is prepared anew or moved."""
    directory = source.directory
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(directory.iterdir())]
    digest = hashlib.blake2b(repr((str(directory.resolve()), stats)).encode(), digest_size=8).hexdigest()
    return cache_dir() / "-".join(filter(None, [source.spec.name.replace("/", "-"), source.split, kind, digest]))


def _save(source: TfdsSource, target: Path, **arrays: np.ndarray) -> bool:
    """Writes arrays into the folder `target`, whole or not at all. False, with a warning, if it cannot."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as temporary:
            new = Path(temporary) / target.name
            new.mkdir()
            for name, array in arrays.items():
                np.save(new / f"{name}.npy", array)
            try:
                new.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, with the same content
                    raise
    except OSError as error:
        _log.warning("%s:%s is read and decoded anew at each start: %s", source.spec.name, source.split, error)
        return False
    return True
