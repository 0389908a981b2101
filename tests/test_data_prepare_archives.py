"""Preparing data sets from miniature archives of each layout, and reading them back with our sources and with TFDS."""

import fcntl
import gzip
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import tar

from imgcls_jax.data import decode, prepare, prepare_shards, sources
from imgcls_jax.data.facts import FACTS, tfds_file, tfds_path, wordnet_ids

IDS = wordnet_ids()


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def jpeg(i: int) -> bytes:
    """A small JPEG that differs from every other one in content and size."""
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (20 + i % 7, 30 + i % 11, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = prepare.main(["--workers=1", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records(name: str, split: str) -> dict[str, tuple[bytes, int]]:
    """What our source reads: by file name, its bytes and label."""
    source = sources.open_source(name, split)
    found = {r["file"]: (r["image"], r["label"]) for r in map(source.__getitem__, range(len(source)))}
    assert len(found) == len(source)
    return found


def write_imagenet(folder: Path, per_class: int = 8) -> dict[str, dict[str, tuple[bytes, int]]]:
    """Both archives: three classes of training images, ten validation images. By split, file -> (bytes, label)."""
    folder.mkdir(parents=True, exist_ok=True)
    train = {f"{IDS[c]}_{i}.JPEG": (jpeg(100 * c + i), c) for c in (0, 7, 999) for i in range(per_class)}
    inner = {f"{IDS[c]}.tar": tar({f: data for f, (data, label) in train.items() if label == c}) for c in (7, 0, 999)}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(inner))
    labels = tfds_file("datasets/imagenet2012/validation_labels.txt").read_text().split()
    numbers = [3, 1, 50_000, 2, *range(20, 26)]  # as in the published file, not in the order of their names
    names = {n: f"ILSVRC2012_val_{n:08d}.JPEG" for n in numbers}
    validation = {names[n]: (jpeg(5000 + n), IDS.index(labels[n - 1])) for n in numbers}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar({f: data for f, (data, _) in validation.items()}))
    return {"train": train, "validation": validation}


def test_imagenet_from_its_two_archives(tmp_path, capsys):
    splits = write_imagenet(tmp_path / "in")
    code, out, err = run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")
    assert code == 0, err
    assert "WARNING: this is not the published imagenet2012" in out and "24 train, 10 validation" in out
    assert f"{tmp_path / 'in' / 'ILSVRC2012_img_val.tar'} has" in out and "the published file has 6,744,924,160" in out
    for split, expected in splits.items():
        assert records("imagenet2012", split) == expected
    assert sources.spec("imagenet2012").class_names == IDS
    assert [p.name for p in (tmp_path / "tfds" / "imagenet2012").iterdir()] == ["5.1.0"]
    assert "tensorflow" not in sys.modules


def test_the_labels_of_imagenets_validation_images_are_those_tfds_gives():
    # The first five, from the development kit's ILSVRC2012_validation_ground_truth.txt and meta.mat.
    labels = tfds_file("datasets/imagenet2012/validation_labels.txt").read_text().split()
    assert labels[:5] == ["n01751748", "n09193705", "n02105855", "n04263257", "n03125729"] and len(labels) == 50_000


def test_imagenets_validation_images_alone(tmp_path, capsys):
    splits = write_imagenet(tmp_path / "in")
    code, out, err = run(capsys, "imagenet2012", f"--from={tmp_path / 'in' / 'ILSVRC2012_img_val.tar'}")
    assert code == 0 and "the files have 10 validation" in out, err
    assert records("imagenet2012", "validation") == splits["validation"]
    assert list(sources.spec("imagenet2012").splits) == ["validation"]


@pytest.mark.parametrize(
    ("name", "archive", "mode", "top"),
    [
        ("imagenet_a", "imagenet-a.tar", "w", "imagenet-a"),
        ("imagenet_r", "imagenet-r.tar", "w", "imagenet-r"),
        ("imagenet_v2", "imagenetv2-matched-frequency.tar.gz", "w:gz", "imagenetv2-matched-frequency-format-val"),
        ("imagenet_v2", "imagenetv2-matched-frequency.tar.gz", "w", "top"),  # compressed in name only
    ],
)
def test_test_sets_of_imagenets_classes(name, archive, mode, top, tmp_path, capsys):
    classes = {(str(c) if name == "imagenet_v2" else IDS[c]): c for c in (3, 20, 100)}
    images = {f"{folder}/{c}_{i}.jpg": (jpeg(100 * c + i), c) for folder, c in classes.items() for i in range(8)}
    contents = {f"{top}/{file}": data for file, (data, _) in images.items()}
    contents |= {f"{top}/README.txt": b"read me", f"{top}/{next(iter(classes))}/._0_0.jpg": b"of a Mac"}
    (tmp_path / archive).write_bytes(tar(contents, mode))
    code, out, err = run(capsys, name, f"--from={tmp_path / archive}")
    assert code == 0 and ("Decompressing" in out) == (mode == "w:gz"), err
    found = records(name, "test")
    assert found == {(os.path.basename(f) if name == "imagenet_a" else f): value for f, value in images.items()}
    assert sources.spec(name).class_names == IDS
    target = tmp_path / "tfds" / tfds_path(name) / FACTS[name].version
    assert [p.name for p in target.parent.iterdir()] == [target.name]  # no decompressed archive is left

    import tensorflow_datasets as tfds

    stock = tfds.data_source(name, split="test", data_dir=tmp_path / "tfds")
    theirs = {r["file_name"].decode(): (r["image"], r["label"]) for r in stock}
    assert {f: label for f, (_, label) in theirs.items()} == {f: label for f, (_, label) in found.items()}
    assert all(np.array_equal(image, decode.decode(found[f][0], 3)) for f, (image, _) in theirs.items())


def test_flowers_from_its_archive_and_two_matlab_files(tmp_path, capsys):
    from scipy.io import savemat

    labels = np.array([[5, 102, 1, 1, 5, 77, 2, 3, 4, 102]])
    ids = {"trnid": [[1, 10]], "valid": [[2, 9, 7]], "tstid": [[3, 4, 5, 6, 8]]}
    savemat(tmp_path / "imagelabels.mat", {"labels": labels})
    savemat(tmp_path / "setid.mat", {name: np.array(value) for name, value in ids.items()})
    images = {f"image_{i:05d}.jpg": jpeg(i) for i in range(1, 11)}
    (tmp_path / "102flowers.tgz").write_bytes(tar({f"jpg/{f}": data for f, data in images.items()}, "w:gz"))
    code, _, err = run(capsys, "oxford_flowers102", f"--from={tmp_path}")
    assert code == 0, err
    for split, column in {"train": "trnid", "validation": "valid", "test": "tstid"}.items():
        names = [f"image_{i:05d}.jpg" for i in ids[column][0]]
        expected = {f: (images[f], int(labels[0, int(f[6:11]) - 1]) - 1) for f in names}
        assert records("oxford_flowers102", split) == expected
    assert sources.spec("oxford_flowers102").class_names[76] == "passion flower"
    (tmp_path / "setid.mat").write_bytes(b"<html>not found</html>")
    code, _, err = run(capsys, "oxford_flowers102", f"--from={tmp_path}", f"--data_dir={tmp_path / 'other'}")
    assert code == 1 and "setid.mat is not the published file" in err and err.count("\n") == 1


def test_the_names_of_flowers_are_tfdss():
    from tensorflow_datasets.datasets.oxford_flowers102 import oxford_flowers102_dataset_builder as stock

    assert list(FACTS["oxford_flowers102"].class_names) == stock._NAMES


def write_inaturalist(folder: Path) -> dict[str, dict[str, tuple[bytes, int]]]:
    species = [("Mus Musculus", "Mammals"), ("Apis mellifera", "Insects"), ("Pica pica", "Birds")]
    categories = [
        {"id": i, "name": name, "supercategory": group, "image_dir_name": f"{i:05d}_{group}"}
        for i, (name, group) in enumerate(species)
    ]
    splits = {}
    for start, split in ((0, "train"), (500, "val")):
        splits[split] = {
            f"{split}/{label:05d}_{species[label][1]}/uuid-{start + 10 * label + i}.jpg": (jpeg(start + i), label)
            for label in range(3)
            for i in range(8)
        }
        files = list(splits[split])
        listing = {
            "categories": categories,
            "images": [{"id": start + i, "file_name": f} for i, f in enumerate(files)],
            "annotations": [
                {"id": i, "image_id": start + i, "category_id": splits[split][f][1]} for i, f in enumerate(files)
            ],
        }
        (folder / f"{split}.tar.gz").write_bytes(tar({f: d for f, (d, _) in splits[split].items()}, "w:gz"))
        text = json.dumps(listing).encode()
        if split == "train":
            (folder / "train.json.tar.gz").write_bytes(tar({"train.json": text}, "w:gz"))
        else:
            (folder / "val.json").write_bytes(text)
    return splits


def test_inaturalist_from_its_archives_and_json_files(tmp_path, capsys):
    splits = write_inaturalist(tmp_path)
    code, _, err = run(capsys, "i_naturalist2021", f"--from={tmp_path}")
    assert code == 0, err
    for split, expected in splits.items():
        assert records("i_naturalist2021", split) == expected
    spec = sources.spec("i_naturalist2021")
    assert spec.class_names == ("mus_musculus", "apis_mellifera", "pica_pica") and sources.eval_split(spec) == "val"

    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tmp_path / "tfds" / "i_naturalist2021" / "2.0.1")
    record = builder.as_data_source("val")[0]
    group = builder.info.features["supercategory"].int2str(record["supercategory"])
    assert (group, record["file_id"].decode()) == (
        {0: "mammals", 1: "insects", 2: "birds"}[record["label"]],
        Path(record["file_name"].decode()).stem,
    )
    assert 500 <= record["id"] < 524


def test_an_image_folder_under_a_new_name(tmp_path, capsys):
    expected: dict[str, dict] = {"train": {}, "validation": {}}
    for split, folder in {"train": "train", "validation": "val"}.items():
        for label, name in enumerate(("cat", "dog")):
            for i in range(8):
                file = Path(folder, name, f"a\nb ü{i}.jpg")
                (tmp_path / "in" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "in" / file).write_bytes(jpeg(i + 10 * label))
                expected[split][str(file)] = (jpeg(i + 10 * label), label)
    code, out, err = run(capsys, "my_pets", f"--from={tmp_path / 'in'}")
    assert code == 0 and "WARNING" not in out, err
    for split, images in expected.items():
        assert records("my_pets", split) == images
    assert sources.spec("my_pets").class_names == ("cat", "dog")
    for arguments, code, text in [
        (["imagenet2021", f"--from={tmp_path}"], 1, "did you mean 'imagenet2012'"),
        (["My pets", f"--from={tmp_path / 'in'}"], 2, "cannot be the name"),
        (["my_cats"], 2, "--from=FOLDER"),
    ]:
        found, _, err = run(capsys, *arguments)
        assert found == code and text in err and err.count("\n") == 1


# As TFDS writes


def test_order_shards_and_metadata_are_tfdss(tmp_path, capsys, monkeypatch):
    """The same examples go through TFDS's own writer; only the order of features within a record may differ."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import shard_utils

    monkeypatch.setattr(prepare_shards, "MIN_SHARD_BYTES", 8_000)
    splits = write_imagenet(tmp_path / "in", per_class=11)
    assert run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")[0] == 0

    class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("5.1.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=IDS),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(images) for split, images in splits.items()}

        def _generate_examples(self, images):
            for file, (data, label) in images.items():
                yield file, {"image": data, "label": label, "file_name": file}

    Stock.name = "imagenet2012"
    shards = len(list((tmp_path / "tfds").rglob("imagenet2012-train*")))
    config = tfds.download.DownloadConfig(num_shards=shards)
    Stock(data_dir=str(tmp_path / "stock")).download_and_prepare(file_format="array_record", download_config=config)
    ours, theirs = (tmp_path / d / "imagenet2012" / "5.1.0" for d in ("tfds", "stock"))
    for name in ("features.json", "label.labels.txt"):
        assert (ours / name).read_text() == (theirs / name).read_text()
    infos = [json.loads((folder / "dataset_info.json").read_text()) for folder in (ours, theirs)]
    assert infos[0]["splits"][0] == infos[1]["splits"][0] and len(infos[0]["splits"][0]["shardLengths"]) == shards > 1
    for info in infos:
        del info["splits"], info["moduleName"]
    assert infos[0] == {**infos[1], "description": infos[0]["description"]}
    for split in splits:
        opened = [tfds.builder_from_directory(d).as_data_source(split) for d in (ours, theirs)]
        assert [r["file_name"] for r in opened[0]] == [r["file_name"] for r in opened[1]]
        for data_dir in (tmp_path / "tfds", tmp_path / "stock"):  # and we read what TFDS reads, whoever wrote it
            ours_read = sources.open_source("imagenet2012", split, data_dir=data_dir)
            skip = {"image": tfds.decode.SkipDecoding()}
            builder = tfds.builder_from_directory(data_dir / "imagenet2012" / "5.1.0")
            theirs_read = builder.as_data_source(split, decoders=skip)
            assert [(r["image"], r["label"], r["file"]) for r in map(ours_read.__getitem__, range(len(ours_read)))] == [
                (r["image"], r["label"], r["file_name"].decode()) for r in theirs_read
            ]
    monkeypatch.undo()
    for size in (1, 2**26 - 1, 2**26, 2**27, 345 * 2**20, 5 * 2**30, 130 * 2**30, 900 * 2**30):
        for count in (2_000, 1_281_167):
            expected = shard_utils.ShardConfig(overhead=0).calculate_number_shards(size - 16 * count, count)
            assert prepare_shards.number_of_shards(size, count) == expected


# What may be wrong


@pytest.mark.parametrize("cut", [100, 700, 3_000, 12_000, -11_000])
@pytest.mark.parametrize("archive", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_a_truncated_tar_is_named(archive, cut, tmp_path, capsys):
    write_imagenet(tmp_path / "in")
    path = tmp_path / "in" / archive
    path.write_bytes(path.read_bytes()[:cut])
    code, _, err = run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")
    assert code == 1 and str(path) in err and "truncated or damaged" in err and err.count("\n") == 1
    assert not (tmp_path / "tfds" / "imagenet2012").exists()


@pytest.mark.parametrize("keep", [0, 300, 1_500, 2_600])
def test_a_truncated_tar_in_a_whole_one_is_named(keep, tmp_path, capsys):
    one, other = (tar({f"{IDS[c]}_{i}.JPEG": jpeg(10 * c + i) for i in range(3)}) for c in (0, 1))
    contents = {f"{IDS[0]}.tar": one[:keep], f"{IDS[1]}.tar": other}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar(contents))
    code, _, err = run(capsys, "imagenet2012", f"--from={tmp_path}")
    assert code == 1 and f"({IDS[0]}.tar) is truncated or damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100])
def test_what_is_no_tar_is_named(content, tmp_path, capsys):
    (tmp_path / "imagenet-a.tar").write_bytes(content)
    code, _, err = run(capsys, "imagenet_a", f"--from={tmp_path}")
    assert code == 1 and "imagenet-a.tar is truncated or damaged" in err and err.count("\n") == 1


def test_what_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "imagenet-a.tar").mkdir()
    code, _, err = run(capsys, "imagenet_a", f"--from={tmp_path}")
    assert code == 1 and "Is a directory" in err and str(tmp_path / "imagenet-a.tar") in err and err.count("\n") == 1


def test_a_damaged_header_is_not_the_end(tmp_path, capsys):
    write_imagenet(tmp_path / "in")
    path = tmp_path / "in" / "ILSVRC2012_img_val.tar"
    data = bytearray(path.read_bytes())
    at = data.index(b"ILSVRC2012_val_00000020")
    data[at + 100 : at + 150] = b"\xff" * 50
    path.write_bytes(data)
    code, _, err = run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")
    assert code == 1 and f"{path} is truncated or damaged" in err and err.count("\n") == 1


def test_a_truncated_compressed_tar_is_named_and_leaves_nothing(tmp_path, capsys):
    data = tar({f"t/{IDS[0]}/{i}.jpg": jpeg(i) for i in range(30)}, "w:gz")
    (tmp_path / "imagenet-r.tar").write_bytes(data[:-2000])
    code, _, err = run(capsys, "imagenet_r", f"--from={tmp_path}")
    assert code == 1 and "imagenet-r.tar is truncated or damaged" in err and err.count("\n") == 1
    assert list((tmp_path / "tfds").rglob("*.part")) == []


def test_a_class_that_is_not_imagenets(tmp_path, capsys):
    (tmp_path / "imagenet-a.tar").write_bytes(tar({"imagenet-a/n00000000/1.jpg": jpeg(1)}))
    code, _, err = run(capsys, "imagenet_a", f"--from={tmp_path}")
    assert code == 1 and "class 'n00000000', which is not one of ImageNet's" in err


def test_two_images_of_one_name(tmp_path, capsys):
    contents = {f"imagenet-a/{IDS[c]}/same.jpg": jpeg(c) for c in (0, 1)}
    (tmp_path / "imagenet-a.tar").write_bytes(tar(contents))
    code, _, err = run(capsys, "imagenet_a", f"--from={tmp_path}")
    assert code == 1 and "two images called same.jpg" in err


def test_two_preparations_at_once(tmp_path, capsys):
    write_imagenet(tmp_path / "in")
    folder = tmp_path / "tfds" / "imagenet2012"
    folder.mkdir(parents=True)
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    code, _, err = run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")
    os.close(other)
    assert code == 1 and "is being prepared by another process" in err and err.count("\n") == 1
    assert run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}")[0] == 0


# Checksums


def test_verify_finds_every_changed_byte(tmp_path, capsys):
    write_imagenet(tmp_path / "in")
    code, out, _ = run(capsys, "imagenet2012", f"--from={tmp_path / 'in'}", "--verify")
    assert code == 0 and "all 5 files in" in out
    target = tmp_path / "tfds" / "imagenet2012" / "5.1.0"
    assert {p.name for p in target.iterdir()} == {
        "checksums.json", *json.loads((target / "checksums.json").read_text())["sha256"]
    }  # fmt: skip
    for file in sorted(set(target.iterdir()) - {target / "checksums.json"}):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, out, err = run(capsys, "imagenet2012", "--verify")
        assert code == 1 and "already prepared" in out and f"{file.name} differs" in err and err.count("\n") == 1
        file.write_bytes(whole)
    assert run(capsys, "imagenet2012", "--verify")[0] == 0
    file.unlink()
    assert f"{file.name} differs" in run(capsys, "imagenet2012", "--verify")[2]


def test_original_files_are_compared_with_what_is_published(tmp_path, capsys, monkeypatch):
    import hashlib

    good, bad = (tar({f"imagenet-a/{IDS[0]}/{i}.jpg": jpeg(i)}) for i in (1, 12))  # of the same size
    assert len(good) == len(bad)
    listing = f"https://x.org/imagenet-a.tar\t{len(good)}\t{hashlib.sha256(good).hexdigest()}\timagenet-a.tar\n"
    (tmp_path / "checksums.tsv").write_text(listing)
    monkeypatch.setattr(prepare, "tfds_file", lambda path: tmp_path / os.path.basename(path))
    (tmp_path / "imagenet-a.tar").write_bytes(bad)
    code, out, err = run(capsys, "imagenet_a", f"--from={tmp_path}", "--verify")
    assert code == 1 and "Comparing" in out and "SHA-256 is not" in err and err.count("\n") == 1
    assert not (tmp_path / "tfds" / "imagenet_a").exists()
    (tmp_path / "imagenet-a.tar").write_bytes(good)
    assert run(capsys, "imagenet_a", f"--from={tmp_path}", "--verify")[0] == 0


def test_decompressed_archives_are_used_again_only_for_the_same_archive(tmp_path):
    from imgcls_jax.data.prepare_archives import plain_tar

    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(b"one"))
    first = plain_tar(path, tmp_path / "scratch")
    os.utime(first, ns=(1, 1))
    assert plain_tar(path, tmp_path / "scratch") == first and first.stat().st_mtime_ns == 1
    path.write_bytes(gzip.compress(b"two"))
    os.utime(path, ns=(5, 5))
    assert plain_tar(path, tmp_path / "scratch").read_bytes() == b"two"
