"""Preparing TFDS data sets from synthetic original files, and reading them back with TFDS itself."""

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from imgcls_jax.data import prepare, prepare_arrays, sources, tfds
from imgcls_jax.data.facts import FACTS, PREPARABLE
from imgcls_jax.types import UserError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder: Path, *, compress: bool = True) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A tiny MNIST of noise, as idx files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, n in {"train": 30, "test": 12}.items():
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        splits[split] = (images, labels)
        for name, array in zip(prepare_arrays.IDX_FILES[split], splits[split], strict=True):
            data = idx(array)
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(data) if compress else data)
    return splits


def rows(images, labels) -> list[tuple[bytes, int]]:
    """What a split holds, whatever its order."""
    return sorted((np.ascontiguousarray(x).tobytes(), int(y)) for x, y in zip(images, labels, strict=True))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = prepare.main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_prepare_makes_is_known():
    assert set(prepare.READERS) == set(prepare.ORIGINALS) == set(PREPARABLE)


@pytest.mark.parametrize(("name", "compress"), [("fashion_mnist", True), ("mnist", False)])
def test_idx_files_come_back_pixel_for_pixel(name, compress, tmp_path, capsys):
    splits = write_mnist(tmp_path / "in", compress=compress)
    code, out, err = run(capsys, name, f"--from={tmp_path / 'in'}")
    assert code == 0, err
    assert f"WARNING: this is not the published {name}" in out and "30 train, 12 test" in out
    spec = sources.spec(name)
    assert dict(spec.splits) == {"train": 30, "test": 12} and spec.class_names == FACTS[name].class_names
    for split, (images, labels) in splits.items():
        source = sources.open_source(name, split)
        assert isinstance(source, sources.ArraySource) and source.images.shape == (len(images), 28, 28, 1)
        assert rows(source.images, source.targets) == rows(images, labels)
    assert "tensorflow" not in sys.modules

    import tensorflow_datasets as tfds

    stock = tfds.data_source(name, split="train", data_dir=tmp_path / "tfds")
    assert rows([r["image"] for r in stock], [r["label"] for r in stock]) == rows(*splits["train"])
    source = sources.open_source(name, "train")
    assert all(np.array_equal(r["image"], x) for r, x in zip(stock, source.images, strict=True))  # the stock order


def test_preparing_again_changes_nothing(tmp_path, capsys):
    write_mnist(tmp_path / "in")
    assert run(capsys, "mnist", f"--from={tmp_path / 'in'}")[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tfds").rglob("*")}
    code, out, _ = run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    assert code == 0 and "already prepared" in out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "tfds").rglob("*")} == before


def test_arrays_are_cached_and_made_anew_when_the_data_set_is(tmp_path, capsys, monkeypatch):
    write_mnist(tmp_path / "in")
    run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    first = sources.open_source("mnist", "train")
    monkeypatch.setattr(tfds, "_records", lambda *args: pytest.fail("the records were read again"))
    again = sources.open_source("mnist", "train")
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.targets, first.targets)
    # Prepared anew: other files, or the same at another time.
    for file in (tmp_path / "tfds" / "mnist" / "3.0.1").iterdir():
        os.utime(file, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        sources.open_source("mnist", "train")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, capsys, monkeypatch, caplog):
    splits = write_mnist(tmp_path / "in")
    run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = sources.open_source("mnist", "test")
    assert rows(source.images, source.targets) == rows(*splits["test"])
    assert "decoded anew at each start" in caplog.text


def test_files_that_tfds_downloaded_are_found(tmp_path, capsys):
    write_mnist(tmp_path / "in")
    downloads = tmp_path / "tfds" / "downloads" / "mnist"
    downloads.mkdir(parents=True)
    for file in (tmp_path / "in").iterdir():
        file.rename(downloads / f"cvdf-datasets_mnist_{file.name.removesuffix('.gz')}RA_Kv3PMVG.gz")
    assert run(capsys, "mnist")[0] == 0
    assert dict(sources.spec("mnist").splits) == {"train": 30, "test": 12}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives_come_back_pixel_for_pixel(name, tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns, k = list(prepare_arrays.CIFAR_LABELS[name]), len(FACTS[name].class_names)
    images, labels, members = {}, {}, {}
    for split, files in prepare_arrays.CIFAR_FILES[name].items():
        images[split] = rng.integers(0, 256, (10 * len(files), 32, 32, 3), dtype=np.uint8)
        labels[split] = rng.integers(0, k, 10 * len(files), dtype=np.uint8)
        records = images[split].transpose(0, 3, 1, 2).reshape(len(labels[split]), -1)
        coarse = [labels[split] // 5] if len(columns) == 2 else []
        records = np.column_stack([*coarse, labels[split], records])
        members |= {f: part.tobytes() for f, part in zip(files, np.split(records, len(files)), strict=True)}
    members[prepare_arrays.CIFAR_LABELS[name]["label"]] = "\n".join([*FACTS[name].class_names, ""]).encode()
    if len(columns) == 2:
        members["coarse_label_names.txt"] = "\n".join(f"group{i}" for i in range(20)).encode()
    archive = tmp_path / "in" / f"{name.replace('cifar', 'cifar-')}-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for file, data in members.items():
            info = tarfile.TarInfo(f"{name}-batches-bin/{file}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    code, out, err = run(capsys, name, f"--from={archive.parent}")
    assert code == 0 and "WARNING" in out, err
    assert sources.spec(name).class_names == FACTS[name].class_names
    for split in images:
        source = sources.open_source(name, split)
        assert rows(source.images, source.targets) == rows(images[split], labels[split])


def damage_cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_short(file: Path) -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-100]))


def damage_text(file: Path) -> None:
    file.write_bytes(b"<html>not found</html>")


def damage_empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_cut, damage_short, damage_text, damage_empty])
def test_a_damaged_idx_file_is_named(damage, tmp_path, capsys):
    write_mnist(tmp_path / "in")
    file = tmp_path / "in" / "t10k-images-idx3-ubyte.gz"
    damage(file)
    code, _, err = run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    assert code == 1 and str(file) in err and err.count("\n") == 1
    assert not (tmp_path / "tfds" / "mnist").exists()


def test_images_and_labels_that_do_not_match(tmp_path, capsys):
    write_mnist(tmp_path / "in")
    (tmp_path / "in" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(29, np.uint8))))
    code, _, err = run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    assert code == 1 and "train-labels-idx1-ubyte.gz has shape (29,)" in err


def test_a_label_out_of_range(tmp_path, capsys):
    write_mnist(tmp_path / "in")
    (tmp_path / "in" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(30, 10, np.uint8))))
    code, _, err = run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    assert code == 1 and "has label 10" in err


def test_missing_files_unknown_names_and_exit_codes(tmp_path, capsys):
    code, _, err = run(capsys, "mnist", f"--from={tmp_path}")
    assert code == 1 and f"train-images-idx3-ubyte is not in {tmp_path}" in err and err.count("\n") == 1
    code, _, err = run(capsys, "cifar10")
    assert code == 1 and "cifar-10-binary.tar.gz is not in" in err
    code, _, err = run(capsys, "fashon_mnist")
    assert code == 2 and "did you mean 'fashion_mnist'" in err
    code, _, err = run(capsys, "imagenet2012")
    assert code == 1 and "ILSVRC2012_img_train.tar is not in" in err
    with pytest.raises(SystemExit) as error:
        prepare.main([])
    assert error.value.code == 2


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    write_mnist(tmp_path / "in")
    (tmp_path / "file").write_bytes(b"")
    code, _, err = run(capsys, "mnist", f"--from={tmp_path / 'in'}", f"--data_dir={tmp_path / 'file'}")
    assert code == 1 and "cannot be written" in err and "--data_dir" in err.splitlines()[-1]


@pytest.mark.parametrize("damage", [damage_cut, Path.unlink])
def test_a_damaged_prepared_data_set_says_to_prepare_it_again(damage, tmp_path, capsys):
    write_mnist(tmp_path / "in")
    run(capsys, "mnist", f"--from={tmp_path / 'in'}")
    damage(next((tmp_path / "tfds").rglob("mnist-train*")))
    with pytest.raises(UserError, match=r"3\.0\.1 is damaged .* remove it and prepare it with `python -m"):
        sources.open_source("mnist", "train")
