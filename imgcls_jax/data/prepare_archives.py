"""Where in their archives the images of a data set are: tar files are read as they lie, never unpacked.

Only an archive that is compressed is decompressed first, to a plain tar beside the result, because a compressed file
can only be read from its beginning; that takes its size on the disk again while the data set is made.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from imgcls_jax.data import folder
from imgcls_jax.data.facts import FACTS, tfds_file, wordnet_ids
from imgcls_jax.data.prepare_shards import Columns, Entry, Extent, Original
from imgcls_jax.types import UserError


class Member(NamedTuple):
    """A file in a tar archive: its name, and where its bytes are in the archive."""

    name: str
    offset: int
    size: int


def plain_tar(path: Path, scratch: Path) -> Path:
    """A tar file that is not compressed: `path` itself, or what it decompresses to, in the folder `scratch`.

    A decompressed file in `scratch` is used again if the archive is the same (by size and time).

    Raises:
      UserError: the archive is truncated or damaged.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    stat = path.stat()
    target = scratch / f"{path.name}-{stat.st_size}-{stat.st_mtime_ns}.tar"
    if target.exists():
        return target
    print(f"Decompressing {path} to {scratch}, which takes its size on the disk again for now.", flush=True)
    scratch.mkdir(exist_ok=True)
    temporary = target.with_suffix(".part")
    with gzip.open(path) as packed, temporary.open("wb") as file:
        try:
            shutil.copyfileobj(packed, file, 2**20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            temporary.unlink()
            raise UserError(f"{path} is truncated or damaged ({error}): get a fresh copy of it.") from error
    return temporary.rename(target)


def members(path: Path) -> Iterator[Member]:
    """The files in an uncompressed tar archive, without hidden ones, in the order of the archive.

    Raises:
      UserError: the archive is truncated or damaged.
    """
    with path.open("rb") as file:
        yield from _members(file, path, os.fstat(file.fileno()).st_size)


def nested_members(path: Path) -> Iterator[tuple[str, Member]]:
    """The files in the tar files in a tar file: the inner archive's name, and the file with its place in the outer.

    Raises:
      UserError: the archive is truncated or damaged.
    """
    with path.open("rb") as file:
        for inner in _members(file, path, os.fstat(file.fileno()).st_size):
            file.seek(inner.offset)
            for member in _members(file, f"{path} ({inner.name})", inner.offset + inner.size):
                yield inner.name, member


def _members(file: BinaryIO, where: object, end: int) -> Iterator[Member]:
    """The files in the tar archive that begins at the file's position and ends before `end`."""
    damaged = f"{where} is truncated or damaged: get a fresh copy of it"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
                    if member.offset_data + member.size > end:
                        raise UserError(f"{damaged} ({member.name} is not whole).")
                    yield Member(member.name, member.offset_data, member.size)
            file.seek(tar.offset)
    except tarfile.TarError as error:
        raise UserError(f"{damaged} ({error}).") from error
    if any(file.read(min(512, max(0, end - file.tell())))):  # tarfile takes a header that it cannot read for the end
        raise UserError(f"{damaged} (a header in it cannot be read).")


def imagenet2012(files: Mapping[str, Path], scratch: Path) -> Original:
    """ILSVRC2012_img_train.tar, a tar of a tar for each class, and ILSVRC2012_img_val.tar, with TFDS's label list."""
    del scratch  # never compressed
    numbers = {name: i for i, name in enumerate(wordnet_ids())}
    splits: dict[str, list[Entry]] = {}
    if "train" in files:
        splits["train"] = []
        for archive, member in nested_members(files["train"]):
            label = _label(numbers, archive.removesuffix(".tar"), files["train"])
            splits["train"].append(_entry(member.name, (label, member.name), files["train"], member))
    if "validation" in files:
        path = tfds_file("datasets/imagenet2012/validation_labels.txt")
        if path is None:
            raise UserError("ImageNet's validation labels are in the package tensorflow-datasets: install it.")
        labels = path.read_text().split()
        splits["validation"] = []
        for member in members(files["validation"]):
            name = PurePosixPath(member.name).name
            number = name.removeprefix("ILSVRC2012_val_").removesuffix(".JPEG")
            if not number.isdigit() or not 1 <= int(number) <= len(labels):
                raise UserError(f"{files['validation']} has {member.name}: expected ILSVRC2012_val_NNNNNNNN.JPEG.")
            label = numbers[labels[int(number) - 1]]
            splits["validation"].append(_entry(name, (label, name), files["validation"], member))
    return _original("imagenet2012", splits, files, label=wordnet_ids(), encoding="jpeg")


def imagenet_like(name: str, key: str, file_name: str) -> Callable[[Mapping[str, Path], Path], Original]:
    """A reader of a test set of ImageNet's classes: a tar of TOP/CLASS/FILE.

    Args:
      name: the data set; the class folders of imagenet_v2 are label numbers, of the others WordNet ids.
      key: what TFDS orders by, with {folder} and {file}.
      file_name: what TFDS calls a file, with {folder} and {file}.
    """

    def read(files: Mapping[str, Path], scratch: Path) -> Original:
        classes = map(str, range(1000)) if name.startswith("imagenet_v2") else wordnet_ids()
        numbers = {class_name: i for i, class_name in enumerate(classes)}
        path = plain_tar(files["test"], scratch)
        entries = []
        for member in members(path):
            parts = PurePosixPath(member.name).parts
            if len(parts) < 3 and not parts[-1].lower().endswith((".jpg", ".jpeg")):
                continue  # a README
            folder, file = parts[-2] if len(parts) > 1 else "", parts[-1]
            label = _label(numbers, folder, files["test"])
            names = {"folder": folder, "file": file}
            entries.append(_entry(key.format(**names), (label, file_name.format(**names)), path, member))
        return _original(name, {"test": entries}, files, label=wordnet_ids(), encoding="jpeg")

    return read


def oxford_flowers102(files: Mapping[str, Path], scratch: Path) -> Original:
    """102flowers.tgz, with the labels (from 1) in imagelabels.mat and the splits in setid.mat."""
    from scipy.io import loadmat  # imported here: only this data set needs it; it comes with scikit-learn

    columns: dict[str, list[int]] = {}
    for file, names in {"labels": ["labels"], "splits": ["trnid", "tstid", "valid"]}.items():
        try:
            content = loadmat(files[file])
            columns |= {name: content[name].reshape(-1).tolist() for name in names}
        except Exception as error:  # scipy's reader trusts the file: what it raises for another one may be anything
            raise UserError(f"{files[file]} is not the published file ({error}): get a fresh copy of it.") from error
    path = plain_tar(files["images"], scratch)
    found = {PurePosixPath(member.name).name: member for member in members(path)}
    splits: dict[str, list[Entry]] = {}
    for split, column in {"train": "trnid", "test": "tstid", "validation": "valid"}.items():
        splits[split] = []
        for number in columns[column]:
            name = f"image_{number:05d}.jpg"
            if name not in found or not 1 <= number <= len(columns["labels"]):
                raise UserError(f"{files['images']} and {files['labels']} do not both have {name}: get fresh copies.")
            label = columns["labels"][number - 1] - 1
            splits[split].append(_entry(name, (label, name), path, found[name]))
    return _original("oxford_flowers102", splits, files, label=FACTS["oxford_flowers102"].class_names)


def i_naturalist2021(files: Mapping[str, Path], scratch: Path) -> Original:
    """{train,val,train_mini}.tar.gz, each with its labels in a json file; classes in the order of the json file."""
    splits: dict[str, list[Entry]] = {}
    names: dict[str, tuple[str, ...]] = {}
    for split in [s for s in ("train", "mini", "val") if s in files]:
        listing = files[f"{split}_json"]
        annotations = _read_json(listing, scratch)
        try:
            categories = [(_tidy(c["name"]), _tidy(c["supercategory"])) for c in annotations["categories"]]
            names["label"] = tuple(label for label, _ in categories)
            names["supercategory"] = tuple(sorted({group for _, group in categories}))
            labels = {a["image_id"]: a["category_id"] for a in annotations["annotations"]}
            images = {PurePosixPath(image["file_name"]).stem: image["id"] for image in annotations["images"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"{listing} is not the published file: it has no {error}.") from error
        groups = [names["supercategory"].index(group) for _, group in categories]
        path = plain_tar(files[split], scratch)
        splits[split] = []
        for member in members(path):
            stem = PurePosixPath(member.name).stem
            image_id = images.get(stem, -1)
            label = labels.get(image_id, -1)
            if not 0 <= label < len(groups):
                raise UserError(
                    f"{listing} has no class for {member.name} of {files[split]}: get fresh copies of both."
                )
            values = (label, groups[label], member.name, stem, image_id)
            splits[split].append(_entry(image_id, values, path, member))
    columns: Columns = {**names, "file_name": "text", "file_id": "text", "id": "int"}
    return Original("i_naturalist2021", FACTS["i_naturalist2021"].version, columns, splits, stamp=_stamp(files))


def _tidy(label: str) -> str:
    return label.lower().replace(" ", "_")


def _read_json(path: Path, scratch: Path) -> dict:
    """A json file, alone or in a compressed tar."""
    try:
        if path.suffix == ".json":
            return json.loads(path.read_bytes())
        archive = plain_tar(path, scratch)
        with archive.open("rb") as file:
            for member in members(archive):
                if member.name.endswith(".json"):
                    file.seek(member.offset)
                    return json.loads(file.read(member.size))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): get a fresh copy of it.") from error
    raise UserError(f"{path} has no json file in it: get a fresh copy of it.")


def image_folder(name: str, root: Path) -> Original:
    """An image folder, with the splits and classes of `folder:PATH`."""
    opened = folder.open_splits(f"folder:{root}")
    splits: dict[str, list[Entry]] = {}
    newest = 0
    for split, source in opened.items():
        splits[split] = []
        for file, label in zip(source.files, source.labels().tolist(), strict=True):
            path = source.root / file
            try:
                stat = path.stat()
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror}): mend it or remove it.") from error
            newest = max(newest, stat.st_mtime_ns)
            splits[split].append(Entry(file, (label, file), Extent(str(path), 0, stat.st_size)))
    class_names = next(iter(opened.values())).spec.class_names
    return Original(name, "1.0.0", {"label": class_names, "file_name": "text"}, splits, stamp=str(newest))


def _label(numbers: Mapping[str, int], class_name: str, path: Path) -> int:
    if class_name not in numbers:
        raise UserError(f"{path} has a class '{class_name}', which is not one of ImageNet's: is it the right file?")
    return numbers[class_name]


def _entry(key: str | int, values: tuple[int | str, ...], path: Path, member: Member) -> Entry:
    return Entry(key, values, Extent(str(path), member.offset, member.size))


def _original(
    name: str, splits: dict[str, list[Entry]], files: Mapping[str, Path], *, label: tuple[str, ...], encoding: str = ""
) -> Original:
    columns: Columns = {"label": label, "file_name": "text"}
    return Original(name, FACTS[name].version, columns, splits, encoding=encoding, stamp=_stamp(files))


def _stamp(files: Mapping[str, Path]) -> str:
    """Differs when an original file does: names, sizes and times."""
    return repr([(key, path.name, path.stat().st_size, path.stat().st_mtime_ns) for key, path in sorted(files.items())])
