"""Hugging Face data sets: `hf:PATH` and `hf:OWNER/NAME`. Needs the extra `hf`. No code of a data set is ever run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_jax.data.protocol import Record
from imgcls_jax.types import Spec, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class HuggingFaceSource:
    """A split of a `datasets.Dataset`; images stay encoded.

    Attributes:
      records: the dataset, with its image and its label column only and decoding of the images off.
      spec: of the data set.
      split: the split's name.
      image: the image column.
      label: the column with a class, or a list of classes.
    """

    records: Any
    spec: Spec
    split: str
    image: str
    label: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        image, file, label = record[self.image]["bytes"], record[self.image]["path"] or "", record[self.label]
        return {
            "image": Path(file).read_bytes() if image is None else image,
            "label": int(label) if self.spec.task == "multiclass" else self._multi_hot([label])[0],
            "file": file,
        }

    def labels(self) -> np.ndarray:
        """[N] int32 or [N,K] float32; reads the label column only."""
        column = self.records.select_columns([self.label])[:][self.label]
        return np.array(column, np.int32) if self.spec.task == "multiclass" else self._multi_hot(column)

    def weights(self) -> None:
        """Hugging Face data sets have no weights."""

    def _multi_hot(self, lists: list[list[int]]) -> np.ndarray:
        several = np.zeros((len(lists), self.spec.num_classes), np.float32)
        for row, classes in zip(several, lists, strict=True):
            row[np.asarray(classes, np.int64)] = 1
        return several


def open_splits(name: str) -> dict[str, HuggingFaceSource]:
    """The splits of hf:PATH (what save_to_disk wrote, or a folder of parquet files or images) or of hf:OWNER/NAME.

    A data set without splits is "train". The image is the column of type Image; the label the column of type
    ClassLabel or, for several labels an image, a list of them.

    Raises:
      UserError: `datasets` is not installed, the data set cannot be had, or has no such columns.
    """
    splits = _load(name)
    features = next(iter(splits.values())).features
    image, label, class_label = _columns(name, features)
    several = features[label] is not class_label
    counts = {split: len(records) for split, records in splits.items()}
    names = tuple(class_label.names)
    spec = Spec(name, len(names), names, counts, "multilabel" if several else "multiclass")
    from datasets import Image

    return {
        split: HuggingFaceSource(
            records.select_columns([image, label]).cast_column(image, Image(decode=False)).with_format(None),
            spec,
            split,
            image,
            label,
        )
        for split, records in splits.items()
    }


def _load(name: str) -> dict[str, Any]:
    """By split, a `datasets.Dataset`."""
    where = name.removeprefix("hf:")
    path = Path(where).expanduser()
    if not path.exists() and (where.count("/") > 1 or where.startswith((".", "~", "/"))):
        raise UserError(f"{path} does not exist: give hf:PATH of a data set on disk, or hf:OWNER/NAME.")
    try:
        # Imported here: it is an optional extra, and takes seconds.
        import datasets
    except ImportError as error:
        raise UserError(f"{name} needs the package datasets: pip install 'imgcls_jax[hf]'.") from error
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(str(path) if path.exists() else where)
    except Exception as error:  # of many kinds: network, missing files, formats; all say what is wrong
        text = " ".join(str(error).split())
        raise UserError(f"{name} cannot be loaded ({type(error).__name__}: {text}).") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _columns(name: str, features: Any) -> tuple[str, str, Any]:
    """The names of the image and the label column, and the ClassLabel of the latter."""
    from datasets import ClassLabel, Image

    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    labels = {
        column: inner
        for column, feature in features.items()
        if isinstance(inner := getattr(feature, "feature", feature), ClassLabel)
    }
    kinds = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    if len(images) != 1:
        raise UserError(f"{name} has the columns {kinds}: expected one of type Image; cast or remove columns.")
    chosen = [column for column in ("label", "labels") if column in labels] or list(labels)
    if not chosen or (len(chosen) > 1 and "label" not in labels):
        raise UserError(
            f"{name} has the columns {kinds}: expected one of type ClassLabel, or a list of ClassLabel; make it with "
            "cast_column('label', ClassLabel(names=[...])) or class_encode_column('label')."
        )
    return images[0], chosen[0], labels[chosen[0]]
