"""Image folders: `folder:PATH`, images sorted into a folder for each class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from imgcls_jax.data.files import IMAGE_SUFFIXES, FileSource, fifth
from imgcls_jax.types import Spec, UserError

# By the name of a folder, the split that it holds.
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

# split -> files relative to the root, class by class, with their class names
_Lists = dict[str, list[tuple[str, str]]]


def open_splits(name: str) -> dict[str, FileSource]:
    """The splits of `folder:PATH`, all of the same spec; lists the folders, reads no image.

    Layout: PATH/train/CLASS/IMAGE, with PATH/val (or validation) and PATH/test of the same form if there are any. If
    there is neither, or PATH/CLASS/IMAGE without train/, the split is made here, and is the same on every machine: a
    fifth of each class, by hash of CLASS/IMAGE, is "test" (`files.fifth`). Labels are the classes of train in sorted
    order. Hidden files are passed over; a link to nowhere is listed, and is a bad record when it is read.

    Raises:
      UserError: naming the folder that is missing, empty or out of place.
    """
    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"Image folder {root} does not exist: give folder:PATH with PATH/train/CLASS/*.jpg.")
    given = {split: root / folder for folder, split in _SPLITS.items() if (root / folder).is_dir()}
    if given and "train" not in given:
        raise UserError(f"Image folder {root} has {', '.join(p.name for p in given.values())} but no train.")
    classes = _list_classes(given.get("train", root))
    lists: _Lists = {"train": _pairs(given["train"].name + "/" if given else "", classes)}
    if len(given) < 2:
        names = [f"{c}/{file}" for c, files in classes.items() for file in files]
        test = fifth((c, n) for (_, c), n in zip(lists["train"], names, strict=True))
        lists = {
            split: [pair for pair, is_test in zip(lists["train"], test, strict=True) if is_test == (split == "test")]
            for split in ("train", "test")
        }
    for split, folder in given.items():
        if split != "train":
            others = _list_classes(folder)
            if unknown := others.keys() - classes.keys():
                raise UserError(f"{folder / sorted(unknown)[0]}: this class is not in {given['train']}.")
            lists[split] = _pairs(folder.name + "/", others)
    class_names = tuple(classes)
    number = {c: i for i, c in enumerate(class_names)}
    spec = Spec(name, len(class_names), class_names, {split: len(pairs) for split, pairs in lists.items()})
    return {
        split: FileSource(
            root, tuple(file for file, _ in pairs), np.array([number[c] for _, c in pairs], np.int32), spec, split
        )
        for split, pairs in lists.items()
    }


def _pairs(base: str, classes: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(f"{base}{c}/{file}", c) for c, files in classes.items() for file in files]


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
