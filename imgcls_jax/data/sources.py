"""Data sets by name: what is known of them without reading a record, and their splits as sources of records.

| name | what it is | module |
| --- | --- | --- |
| `digits` | ships with scikit-learn | `arrays` |
| `cifar10`, `imagenet2012`, `imagenet_v2/topimages`, ... | prepared in TFDS's folder | `tfds`, `facts` |
| `folder:PATH` | images sorted into class folders | `folder` |
| `manifest:PATH` | a CSV or JSONL file that lists images | `manifest` |
| `hf:PATH`, `hf:OWNER/NAME` | Hugging Face data sets | `huggingface` |

Wherever a split is named, slices and sums of splits may be written: "train[:90%]", "train+validation" (`slices`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

from imgcls_jax.data import arrays, folder, huggingface, manifest, tfds, views
from imgcls_jax.data.arrays import ArraySource, from_arrays
from imgcls_jax.data.facts import FACTS, class_names, find, how_to_prepare
from imgcls_jax.data.protocol import Record, Source
from imgcls_jax.data.tfds import cache_dir, tfds_dir
from imgcls_jax.data.views import ConcatSource
from imgcls_jax.types import ConfigError, Spec, UserError, nearest

__all__ = [
    "ArraySource",
    "ConcatSource",
    "Record",
    "Source",
    "cache_dir",
    "check_mix",
    "eval_split",
    "from_arrays",
    "from_splits",
    "mixture",
    "open_source",
    "spec",
    "spec_of",
    "tfds_dir",
]

# By the word before the colon: name -> its splits. Their records are stored class by class.
OPENERS: dict[str, Callable[[str], Mapping[str, Source]]] = {
    "folder": folder.open_splits,
    "manifest": manifest.open_splits,
    "hf": huggingface.open_splits,
}


def spec(name: str, *, data_dir: str | os.PathLike | None = None, positive_class: str = "") -> Spec:
    """What is known of a data set without reading a record.

    A TFDS data set that is prepared is described by its own metadata, one that is not by what is published of it.

    Args:
      name: digits, a TFDS data set, folder:PATH, manifest:PATH, hf:PATH or hf:OWNER/NAME.
      data_dir: TFDS's folder; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.
      positive_class: "", or the one class that is told from all the others, which become "rest".

    Raises:
      ConfigError: the name or the class is not known.
      UserError: the folder, the manifest or the prepared data set is not usable.
    """
    found = _spec(name, data_dir)
    return views.one_versus_rest_spec(found, positive_class) if positive_class else found


def open_source(
    name: str, split: str, *, data_dir: str | os.PathLike | None = None, positive_class: str = ""
) -> Source:
    """Opens a split of a data set, or slices and sums of splits.

    Small data sets of TFDS come as an `ArraySource`, decoded once and cached under `cache_dir()`; the others give
    encoded images. Slices of digits and of TFDS data sets, which are stored shuffled, are taken in stored order; those
    of the others, stored class by class, after one fixed shuffling, so that a slice is a sample of all classes.

    Args:
      name: as in `spec`.
      split: one of `spec(name).splits` ("val" and "validation" are one), or an expression of `slices`.
      data_dir: as in `spec`.
      positive_class: as in `spec`.

    Raises:
      ConfigError: the name, the split or the class is not known.
      UserError: the data set is not prepared (the text says the command that prepares it), or not usable.
    """
    opener = OPENERS.get(name.partition(":")[0]) if ":" in name else None
    if opener is not None:
        return from_splits(opener(name), split, by_class=True, positive_class=positive_class)
    if name == "digits":
        source = views.select(split, arrays.DIGITS, arrays.digits, by_class=False)
    else:
        found = _spec(name, data_dir)
        directory = tfds.prepared(name, data_dir)
        if directory is None:
            raise UserError(f"{name} is not in {tfds_dir(data_dir)}: {how_to_prepare(name)}")
        source = views.select(split, found, lambda whole: tfds.open_split(found, whole, directory), by_class=False)
    return views.one_versus_rest(source, positive_class) if positive_class else source


def from_splits(
    splits: Mapping[str, Source], split: str, *, by_class: bool = False, positive_class: str = ""
) -> Source:
    """As `open_source`, of whole splits that are open: for sources made in Python.

    Args:
      splits: the data set, such as {"train": from_arrays(...), "test": from_arrays(...)}.
      split: one of them, or an expression of `slices`.
      by_class: whether records are stored class by class (`views.select`).
      positive_class: as in `spec`.

    Raises:
      ConfigError: the split or the class is not known.
    """
    source = views.select(split, spec_of(splits), lambda whole: splits[whole], by_class=by_class)
    return views.one_versus_rest(source, positive_class) if positive_class else source


def spec_of(splits: Mapping[str, Source], *, positive_class: str = "") -> Spec:
    """The spec of a data set made in Python, by its whole splits; `positive_class` as in `spec`.

    Raises:
      ConfigError: the splits have different classes.
    """
    whole = ConcatSource(tuple(splits.values()), next(iter(splits.values())).spec, "")
    counts = {split: len(source) for split, source in splits.items()}
    found = dataclasses.replace(whole.spec, splits=counts)
    return views.one_versus_rest_spec(found, positive_class) if positive_class else found


def mixture(
    first: Source, names: Sequence[str], *, data_dir: str | os.PathLike | None = None, positive_class: str = ""
) -> ConcatSource:
    """A source for training on several data sets: `first`, then the whole split "train" of each of the others.

    Args:
      first: the main data set's.
      names: of the others, as in `spec`.
      data_dir: as in `spec`.
      positive_class: as in `spec`, of the others.

    Raises:
      ConfigError: a data set has other classes than the first. Otherwise as `open_source`.
    """
    others = [open_source(name, "train", data_dir=data_dir, positive_class=positive_class) for name in names]
    total = len(first) + sum(map(len, others))
    whole = dataclasses.replace(first.spec, name=" + ".join([first.spec.name, *names]), splits={"train": total})
    return ConcatSource((first, *others), whole, "train")


def check_mix(mix: Sequence[Sequence]) -> None:
    """Raises ConfigError unless the value of data.mix is pairs of a name and a weight above 0."""
    for entry in mix:
        pair = isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str)
        if not pair or not isinstance(entry[1], int | float) or not 0 < entry[1] < float("inf"):
            raise ConfigError(
                f"data.mix has the entry {entry!r}: write pairs of a data set and its weight above 0, such as "
                "(('folder:/more', 0.5),)."
            )


def eval_split(spec: Spec) -> str:
    """The split to evaluate on while training: "validation" (or "val") where there is one, else "test"."""
    return next((split for split in ("validation", "val") if split in spec.splits), "test")


def _spec(name: str, data_dir: str | os.PathLike | None) -> Spec:
    if name == "digits":
        return arrays.DIGITS
    kind, colon, _ = name.partition(":")
    if colon and kind in OPENERS:
        return next(iter(OPENERS[kind](name).values())).spec
    directory = tfds.prepared(name, data_dir)
    if directory is not None:
        return tfds.describe(name, directory)
    found = find(name)
    if found is None:
        known = ["digits", *FACTS, *(f"{kind}:PATH" for kind in OPENERS)]
        raise ConfigError(
            f"There is no data set '{name}'{nearest(name, known)}, and none of that name is prepared in "
            f"{tfds_dir(data_dir)}; known: {', '.join(known)}."
        )
    names = class_names(found)
    return Spec(name, len(names), names, found.splits, found.task)
