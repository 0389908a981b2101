"""Prepares a data set for reading without TensorFlow, from its original files:

    python -m imgcls_jax.data.prepare NAME [--from=PATH] [--data_dir=DIR]

NAME is mnist or fashion_mnist (four idx files, gzipped or not), cifar10 or cifar100 (the "binary version" tar.gz).
The result is what TFDS itself would have written in ArrayRecord format, and `tfds.data_source(NAME)` reads it.

Exit codes: 0 prepared, or already there; 1 a file is missing or damaged; 2 bad command line.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imgcls_jax.data import sources
from imgcls_jax.data.facts import FACTS, PREPARABLE, how_to_prepare
from imgcls_jax.types import ConfigError, UserError, nearest

# Where a package of the operating system puts the files (Debian: dataset-fashion-mnist).
SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}

# What TFDS puts before the name of a file that it downloaded.
DOWNLOAD_PREFIXES = {
    "mnist": "cvdf-datasets_mnist_",
    "fashion_mnist": "fashion-mnist_",
    "cifar10": "cs.toronto.edu_kriz_",
    "cifar100": "cs.toronto.edu_kriz_",
}

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


def find_files(name: str, folder: Path | None, data_dir: Path) -> dict[str, Path]:
    """Where the original files of a data set are, by the name they are published under, without ".gz".

    Looks in `folder`; without one, in the system's folder, in TFDS's download folder and its folder `manual`.

    Raises:
      UserError: naming the first missing file and every folder looked in.
    """
    if name in CIFAR_FILES:
        wanted = [f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"]
    else:
        wanted = [file for pair in IDX_FILES.values() for file in pair]
    downloads = data_dir / "downloads"
    if folder is not None:
        folders = [folder]
    else:
        folders = [downloads, downloads / name, downloads / "manual", downloads / "manual" / name]
        folders[:0] = [SYSTEM_FOLDERS[name]] if name in SYSTEM_FOLDERS else []
    found: dict[str, Path] = {}
    for file in wanted:
        stem = file.removesuffix(".tar.gz")
        patterns = [file, f"{file}.gz", file.replace("-idx", ".idx"), f"{DOWNLOAD_PREFIXES[name]}{stem}*.gz"]
        paths = [p for d in folders for pattern in patterns for p in sorted(d.glob(pattern))]
        if folder is not None and folder.is_file() and len(wanted) == 1:
            paths = [folder]
        if not paths:
            raise UserError(
                f"{name}: {file} is not in {' or '.join(map(str, folders))}; get the original files and run "
                f"`python -m imgcls_jax.data.prepare {name} --from=FOLDER`."
            )
        found[file] = paths[0]
    return found


def prepare(name: str, *, folder: Path | None, data_dir: Path) -> None:
    """Writes data set `name` under `data_dir`, unless it is there; see the module's docstring.

    Args:
      name: mnist, fashion_mnist, cifar10 or cifar100.
      folder: where the original files are (for CIFAR also the archive itself); None looks in the usual places.
      data_dir: TFDS's folder.

    Raises:
      UserError: a file is missing or damaged, or the folder cannot be written.
    """
    facts = FACTS[name]
    target = data_dir / name / facts.version
    if (target / "dataset_info.json").exists():
        print(f"{name} is already prepared in {target}.")
        return
    files = find_files(name, folder, data_dir)
    print(f"{name}: reading {', '.join(str(p) for p in files.values())}", flush=True)
    names: dict[str, list[str]]
    if name in CIFAR_FILES:
        splits, names = read_cifar(name, next(iter(files.values())))
    else:
        splits, names = read_mnist(files), {"label": list(facts.class_names)}
    counts = {split: len(columns["image"]) for split, columns in splits.items()}
    description = f"{name}, written by imgcls_jax.data.prepare."
    if counts != facts.splits:
        published = ", ".join(f"{n:,} {split}" for split, n in facts.splits.items())
        found = ", ".join(f"{n:,} {split}" for split, n in counts.items())
        description += f" NOT the published data set, which has {published} images: this one has {found}."
        print(f"WARNING: this is not the published {name} ({published} images): the files have {found}.", flush=True)
    print(f"{name}: writing {target}", flush=True)

    from imgcls_jax.data import tfds_builders  # imports TFDS: seconds, and not needed to report an error

    builder = tfds_builders.make(
        name, facts.version, splits, class_names=names, description=description, data_dir=str(data_dir)
    )
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error}): give another folder with --data_dir.") from error
    written = {split: builder.info.splits[split].num_examples for split in counts}
    if written != counts:
        raise UserError(f"{target} holds {written} examples instead of {counts}: remove it and prepare it again.")
    print(f"{name}: prepared {', '.join(f'{n:,} {split}' for split, n in counts.items())} images in {target}.")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m imgcls_jax.data.prepare", description="Prepares a data set from its original files."
    )
    parser.add_argument("name", help=f"the data set: {', '.join(PREPARABLE)}")
    parser.add_argument("--from", dest="folder", type=Path, help="folder with the original files")
    parser.add_argument("--data_dir", type=Path, help="where to write; default: TFDS's folder")
    args = parser.parse_args(argv)
    try:
        if args.name not in PREPARABLE:
            hint = f": {how_to_prepare(args.name)}" if args.name in FACTS else f"{nearest(args.name, PREPARABLE)}."
            raise ConfigError(f"prepare makes {', '.join(PREPARABLE)}, not '{args.name}'{hint}")
        prepare(args.name, folder=args.folder, data_dir=sources.tfds_dir(args.data_dir))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
