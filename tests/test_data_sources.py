import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from imgcls_jax.data import decode, sources
from imgcls_jax.data.facts import FACTS, PREPARABLE
from imgcls_jax.types import ConfigError, Spec, UserError


def write_image(path: Path, value: int, size: tuple[int, int] = (10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def make_folder(root: Path, layout: dict[str, int], suffix: str = "png") -> Path:
    """By class folder, how many images."""
    for folder, count in layout.items():
        for i in range(count):
            write_image(root / folder / f"{i:03d}.{suffix}", i)
    return root


# digits and specs


def test_digits_is_split_by_class_and_loses_nothing():
    train, test = (sources.open_source("digits", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360) == tuple(sources.spec("digits").splits.values())
    assert train.images.shape[1:] == (8, 8, 1) and train.images.dtype == np.uint8
    assert train.images.min() == 0 and train.images.max() == 255
    np.testing.assert_allclose(np.bincount(test.targets), np.bincount(train.targets) * 360 / 1437, atol=1)

    from sklearn.datasets import load_digits

    data = load_digits()
    scaled = np.round(data.images * 255 / 16).astype(np.uint8)
    expected = sorted((x.tobytes(), int(y)) for x, y in zip(scaled, data.target, strict=True))
    found = [(x.tobytes(), int(y)) for s in (train, test) for x, y in zip(s.images, s.targets, strict=True)]
    assert sorted(found) == expected


def test_digits_is_split_the_same_for_ever():
    # 360 test images: their numbers would change if scikit-learn changed how it draws.
    test = sources.open_source("digits", "test")
    assert (test.targets[:12].tolist(), int(test.images.astype(int).sum())) == (
        [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6],
        1790819,
    )


@pytest.mark.parametrize("name", ["digits", *FACTS])
def test_every_spec_is_known_with_no_data(name, tmp_path):
    spec = sources.spec(name, data_dir=tmp_path)
    assert len(set(spec.class_names)) == spec.num_classes
    few = {"cifar100": 100, "oxford_flowers102": 102, "i_naturalist2021": 10_000}
    assert spec.num_classes == (1000 if name.startswith("imagenet") else few.get(name, 10))
    assert min(spec.splits.values()) > 0 and sources.eval_split(spec) in spec.splits


def test_imagenets_classes_are_wordnet_ids():
    names = sources.spec("imagenet2012").class_names
    assert names[0] == "n01440764" and names[999] == "n15075141" and names == tuple(sorted(names))


def test_asking_for_a_spec_imports_nothing_slow():
    code = (
        "import sys; from imgcls_jax.data import pipeline, sources\n"
        "for name in ('digits', 'mnist', 'imagenet2012'): sources.spec(name)\n"
        "print([m for m in ('tensorflow_datasets', 'sklearn', 'grain', 'jax', 'tensorflow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=root).stdout
    assert out.strip() == "[]"


def test_unknown_names_and_splits_name_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"'fashon_mnist'.*did you mean 'fashion_mnist'"):
        sources.spec("fashon_mnist", data_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"'tset'.*did you mean 'test'"):
        sources.open_source("digits", "tset")


@pytest.mark.parametrize("name", PREPARABLE)
def test_a_missing_data_set_says_the_command_that_prepares_it(name, tmp_path):
    with pytest.raises(UserError) as error:
        sources.open_source(name, "train", data_dir=tmp_path)
    assert f"`python -m imgcls_jax.data.prepare {name} --from=FOLDER`" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_data_set_in_another_format_is_refused(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord", "splits": []}))
    with pytest.raises(UserError, match="is in format tfrecord"):
        sources.open_source("mnist", "train", data_dir=tmp_path)
    folder.parent.rename(tmp_path / "svhn_cropped")
    with pytest.raises(UserError, match="tfds build svhn_cropped --file_format=array_record"):
        sources.open_source("svhn_cropped", "train", data_dir=tmp_path)


# arrays


def test_array_source_checks_what_it_is_given():
    spec = Spec("mine", 2, ("a", "b"), {"train": 3})
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.array([0, 1, 1], np.int32)
    assert sources.ArraySource(images, labels, spec, "train")[1]["label"] == 1
    for bad_images, bad_labels, message in [
        (images.astype(np.float32), labels, "float32"),
        (images[..., 0], labels, r"\[3, 4, 4\]"),
        (images, labels[:2], r"\[2\]"),
        (images, labels.astype(np.int64), "int64"),
        (images, labels + 1, r"mine:train\[1\] has label 2"),
        (images, labels - 1, r"mine:train\[0\] has label -1"),
    ]:
        with pytest.raises(UserError, match=message):
            sources.ArraySource(bad_images, bad_labels, spec, "train")


# folders


def test_folder_with_every_split(tmp_path):
    layout = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test/dog": 2}
    name = f"folder:{make_folder(tmp_path, layout)}"
    spec = sources.spec(name)
    assert spec.class_names == ("cat", "dog") and spec.num_classes == 2
    assert dict(spec.splits) == {"train": 5, "validation": 2, "test": 2}
    assert sources.eval_split(spec) == "validation"
    train, val, test = (sources.open_source(name, s) for s in ("train", "val", "test"))
    assert [train[i]["file"] for i in range(5)] == [*(f"train/cat/00{i}.png" for i in range(3)), "train/dog/000.png",
                                                    "train/dog/001.png"]  # fmt: skip
    assert [train[i]["label"] for i in range(5)] == [0, 0, 0, 1, 1]
    assert [test[i]["label"] for i in range(2)] == [1, 1]
    assert val[0]["file"] == "val/cat/000.png" and val.split == "validation"
    assert train[1]["image"] == (tmp_path / "train/cat/001.png").read_bytes()


def test_folder_takes_validation_for_val_any_case_and_no_hidden_files(tmp_path):
    make_folder(tmp_path, {"train/a": 1, "validation/a": 1})
    names = ["b.JPG", "c.Jpeg", "d.BMP", "e.webp", "f.tif", "g.TIFF"]
    for name in names:
        write_image(tmp_path / "train" / "a" / name, 0)
    (tmp_path / "train" / "a" / "h.gif").write_bytes(b"GIF89a")
    for name in ["train/a/._b.jpg", "train/a/notes.txt", "train/.ipynb_checkpoints/x.png", "train/README.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    assert source.files == tuple(f"train/a/{n}" for n in ["000.png", *names, "h.gif"])
    assert dict(source.spec.splits) == {"train": 8, "validation": 1}


def test_any_name_of_a_file_or_class_will_do(tmp_path):
    """Newlines, other alphabets, quotes, and bytes that are no text at all, as old archives have them."""
    files = [b"zwei\nzeilen.png", "猫 😀.PNG".encode(), b"a'b\"c;%s{x}.jpg", b"latin\xe9.png"]
    for folder in (b"train/one\nclass", "train/日本".encode(), b"train/one\nclass\xff"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), folder))
        for file in files:
            Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), folder, file))).write_bytes(file)
    name = f"folder:{tmp_path}"
    found = {}
    for split in ("train[:50%]", "train[50%:]+test"):
        source = sources.open_source(name, split)
        found |= {source[i]["file"]: source[i]["image"] for i in range(len(source))}
    assert len(found) == 12 and set(found.values()) == set(files)
    assert all(os.fsencode(file).endswith(data) for file, data in found.items())
    assert sources.spec(name).num_classes == 3


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_folder_without_a_test_split_gets_a_fixed_one(tmp_path, prefix):
    layout = {"a": 100, "b": 8, "c": 2, "d": 1}
    make_folder(tmp_path, {prefix + name: count for name, count in layout.items()})
    name = f"folder:{tmp_path}"
    train, test = (sources.open_source(name, split) for split in ("train", "test"))
    assert np.bincount(test.targets, minlength=4).tolist() == [20, 2, 1, 0]
    assert np.bincount(train.targets, minlength=4).tolist() == [80, 6, 1, 1]
    everything = {f"{prefix}{c}/{i:03d}.png" for c, count in layout.items() for i in range(count)}
    assert set(train.files) | set(test.files) == everything and not set(train.files) & set(test.files)
    # The same on every machine and in every version: by hash of the name, not by place or by order of listing.
    assert [f.removeprefix(prefix) for f in test.files[-3:]] == ["b/001.png", "b/003.png", "c/000.png"]


@pytest.mark.parametrize(
    ("layout", "empty", "message"),
    [
        ({}, [], "has no class folders"),
        ({}, ["train"], "train has no class folders"),
        ({"train/a": 1}, ["train/b"], "train/b has no images"),
        ({"a": 1}, ["b"], "b has no images"),
        ({"train/a": 1, "test/a": 1}, ["test/b"], "test/b has no images"),
        ({"train/a": 1, "test/zebra": 1}, [], "test/zebra: this class is not in"),
        ({"train/a": 1, "val/zebra": 1}, [], "val/zebra: this class is not in"),
        ({"test/a": 1}, [], "has test but no train"),
    ],
)
def test_folder_errors_name_the_folder(tmp_path, layout, empty, message):
    make_folder(tmp_path, layout)
    for folder in empty:
        (tmp_path / folder).mkdir(parents=True)
    for call in (sources.spec, lambda name: sources.open_source(name, "train")):
        with pytest.raises(UserError, match=message) as error:
            call(f"folder:{tmp_path}")
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        sources.spec(f"folder:{tmp_path}/nowhere")


# decoding


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def test_decode_gives_rgb_and_grey():
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    data = encode(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(decode.decode(data, 3), rgb)
    grey = encode(rgb[..., :1])
    np.testing.assert_array_equal(decode.decode(grey, 1), rgb[..., :1])
    np.testing.assert_array_equal(decode.decode(grey, 3), np.repeat(rgb[..., :1], 3, axis=2))
    luma = (rgb @ [0.299, 0.587, 0.114])[..., None]  # ITU-R BT.601
    assert np.abs(decode.decode(data, 1) - luma).max() <= 1


def test_decode_drops_alpha_and_turns_16_bits_into_8():
    rgba = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decode.decode(encode(rgba), 3), rgba[..., 2::-1])
    deep = np.random.default_rng(0).integers(0, 65536, (7, 9, 1), dtype=np.uint16)
    assert np.abs(decode.decode(encode(deep), 1) - deep / 257).max() <= 1


def test_decode_applies_the_exif_rotation():
    from io import BytesIO

    from PIL import Image

    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", exif=exif)
    upright = decode.decode(file.getvalue(), 3)
    assert upright.shape == (32, 16, 3) and upright[:14].min() > 250 and upright[18:].max() < 5


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_a_bad_record(suffix, share):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(image, suffix)
    with pytest.raises(decode.BadRecordError):
        decode.decode(data[: int(len(data) * share)], 3)


def test_text_is_a_bad_record():
    with pytest.raises(decode.BadRecordError, match="not a readable image"):
        decode.decode(b"<html>404</html>", 3)


def test_files_and_links_that_cannot_be_read_raise_oserror(tmp_path):
    make_folder(tmp_path, {"train/a": 2, "test/a": 1})
    os.symlink(tmp_path / "gone.png", tmp_path / "train" / "a" / "link.png")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(OSError, match=r"link\.png"):
        source[2]
