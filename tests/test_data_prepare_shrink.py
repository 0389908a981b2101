"""Shrinking images for training: against Pillow, and through `prepare --resize_short`."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from imgcls_jax.data import decode, prepare, sources
from imgcls_jax.data.prepare_shrink import Shrink


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A photograph of 640x426."""
    return Image.fromarray(load_sample_images().images[0][:426])


def file(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return out.getvalue()


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


def difference(data: bytes, image: Image.Image, quality: int) -> float:
    """Mean difference from what Pillow makes of an image of twice the size; it is JPEG's own rounding."""
    small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    reference = Image.open(io.BytesIO(file(small, quality=quality, subsampling="4:2:0")))
    found = Image.open(io.BytesIO(data))
    assert (found.format, found.mode, found.size) == ("JPEG", "RGB", reference.size)
    return float(np.abs(np.asarray(found).astype(int) - np.asarray(reference).astype(int)).mean())


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((640, 426), 256, (385, 256)),
        ((426, 640), 256, (256, 385)),
        ((500, 500), 99, (99, 99)),
        ((2000, 10), 3, (600, 3)),
    ],
)
def test_the_short_side_and_the_aspect_ratio(photo, size, short, expected):
    small = Image.open(io.BytesIO(Shrink(short, 90)(file(photo.resize(size)))))
    assert small.size == expected and small.format == "JPEG" and small.mode == "RGB"


def test_pixels_are_those_of_pillows_box_filter(photo):
    data = file(photo)
    small = {quality: Shrink(213, quality)(data) for quality in (30, 90, 100)}
    for quality, shrunk in small.items():
        assert difference(shrunk, Image.open(io.BytesIO(data)), quality) < 1.5
    assert difference(small[30], photo, 90) > 5  # the quality is heeded
    assert len(small[30]) < len(small[90]) / 2 < len(small[100]) / 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_is_small_enough_keeps_its_bytes(photo, mode):
    data = file(photo.convert(mode))
    assert Shrink(426, 90)(data) is data
    assert Shrink(425, 90)(data) != data


def test_a_rotation_in_the_metadata_is_applied_once(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    data = file(photo, exif=exif)
    assert Shrink(426, 90)(data) is data
    turned = photo.transpose(Image.Transpose.ROTATE_270)
    small = Shrink(213, 95)(data)
    assert difference(small, turned, 95) < 2
    assert not Image.open(io.BytesIO(small)).getexif()


@pytest.mark.parametrize("short", [213, 1000])
@pytest.mark.parametrize("kind", ["PNG", "CMYK", "WEBP", "PNG16"])
def test_other_kinds_become_rgb_jpeg(photo, kind, short):
    if kind == "CMYK":  # as the 22 of ImageNet
        data = file(photo.convert("CMYK"))
    elif kind == "PNG16":
        data = cv2.imencode(".png", np.asarray(photo)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    else:
        data = file(photo, kind)
    small = Shrink(short, 95)(data)
    image = Image.fromarray(decode.decode(data, 3))
    if short > 426:  # the size stays
        image = image.resize((1280, 852), Image.Resampling.NEAREST)
    assert difference(small, image, 95) < 2


def make_folder(root, photo) -> None:
    for c, name in enumerate(("cat", "dog")):
        (root / "train" / name).mkdir(parents=True)
        for i in range(6):
            (root / "train" / name / f"{i}.jpg").write_bytes(
                file(photo.crop((0, 0, 100 + 40 * i, 90 + 30 * c + 20 * i)))
            )


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = prepare.main(["--workers=1", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_data_set_of_shrunk_images(tmp_path, capsys, photo):
    make_folder(tmp_path / "in", photo)
    for options in ([], ["--resize_short=120"]):
        assert run(capsys, "pets", f"--from={tmp_path / 'in'}", *options)[0] == 0
    whole, small = (sources.open_source(name, "train") for name in ("pets", "pets_short120"))
    assert len(whole) == len(small) > 0 and whole.spec.class_names == small.spec.class_names
    kept = 0
    for i in range(len(whole)):
        a, b = whole[i], small[i]  # in the same order
        assert (a["label"], a["file"]) == (b["label"], b["file"])
        kept += a["image"] == b["image"]
        assert b["image"] == Shrink(120, 90)(a["image"])
        assert min(decode.decode(b["image"], 3).shape[:2]) == min(120, *decode.decode(a["image"], 3).shape[:2])
    assert 0 < kept < len(whole)
    info = json.loads((tmp_path / "tfds" / "pets_short120" / "1.0.0" / "dataset_info.json").read_text())
    assert "short side of 120 (JPEG quality 90)" in info["description"]

    code, out, _ = run(capsys, "pets", f"--from={tmp_path / 'in'}", "--resize_short=120")
    assert code == 0 and "already prepared" in out
    code, _, err = run(capsys, "pets", f"--from={tmp_path / 'in'}", "--resize_short=120", "--quality=70")
    assert code == 1 and "is prepared with JPEG quality 90" in err and err.count("\n") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_decoded_is_named(workers, tmp_path, capsys, photo, monkeypatch):
    monkeypatch.setattr("imgcls_jax.data.prepare_shards.MIN_SHARD_BYTES", 20_000)  # several shards
    make_folder(tmp_path / "in", photo)
    bad = tmp_path / "in" / "train" / "dog" / "4.jpg"  # no other split is given: it may be of either
    bad.write_bytes(b"not an image")
    source = [f"--from={tmp_path / 'in'}", "--resize_short=64", f"--workers={workers}"]
    code, _, err = run(capsys, "pets", *source)
    assert code == 1 and " train/dog/4.jpg: not a readable image" in err and err.count("\n") == 1
    assert not (tmp_path / "tfds" / "pets_short64" / "1.0.0").exists()
    bad.write_bytes(file(photo))
    assert run(capsys, "pets", *source)[0] == 0
    assert [p.name for p in (tmp_path / "tfds" / "pets_short64").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    "options", [["--quality=80"], ["--resize_short=0"], ["--resize_short=9", "--quality=101"], ["--resize_short=-1"]]
)
def test_flags_that_make_no_sense(options, tmp_path, capsys):
    code, _, err = run(capsys, "pets", f"--from={tmp_path}", *options)
    assert code == 2 and "--resize_short" in err and err.count("\n") == 1
