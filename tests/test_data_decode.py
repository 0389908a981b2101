"""Image files to arrays: every kind, against the pixels that were written and against Pillow; and damaged ones."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_files
import pytest
from PIL import Image, ImageOps

from imgcls_jax.data import decode, jpeg
from imgcls_jax.data.decode import BadRecordError

GOOD = odd_files.good()
BAD = odd_files.bad()


@pytest.fixture(params=["with the extension", "without"])
def decoder(request, monkeypatch):
    """Both ways to decode a JPEG, which must agree in every bit."""
    if request.param == "without":
        monkeypatch.setattr(jpeg, "_jpeg", None)
    elif not jpeg.available():
        pytest.skip("the extension of data/jpeg.py is not built")


def as_int(image: np.ndarray) -> np.ndarray:
    return image.astype(int)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file_gives_the_pixels_that_were_written(name):
    file = GOOD[name]
    image = decode.decode(file.data, 3)
    assert image.dtype == np.uint8 and image.shape == file.pixels.shape and image.flags.c_contiguous
    assert np.abs(as_int(image) - file.pixels).max() <= file.within
    assert decode.read_header(file.data).size == image.shape[:2]
    grey = decode.decode(file.data, 1)
    luma = file.pixels @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert grey.shape == (*image.shape[:2], 1)
    assert np.abs(grey[..., 0] - luma).max() < file.within + 1.01  # libpng rounds down


@pytest.mark.parametrize("name", [n for n in GOOD if "sixteen_bits_grey" not in n])
def test_every_kind_of_file_is_as_pillow_and_torchvision_see_it(name):
    with Image.open(io.BytesIO(GOOD[name].data)) as image:
        image.load()
        image.info.pop("transparency", None)
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(GOOD[name].data, 3), expected)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_format_that_has_one(kind, orientation):
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": odd_files.exif(orientation)}
    data = odd_files.encode(odd_files.picture(height=45, width=67), kind, **options)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(data, 3), expected)
    assert decode.read_header(data).size == expected.shape[:2]
    part = decode.decode(data, 3, box=(3, 8, 20, 25), least=(20, 25))
    np.testing.assert_array_equal(part, expected[3:23, 8:33])


# Parts


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", GOOD)
def test_a_part_is_that_part_of_the_whole(name):
    height, width = GOOD[name].pixels.shape[:2]
    whole = decode.decode(GOOD[name].data, 3)
    for top, left, h, w in [
        (0, 0, height, width),
        (height // 3, width // 4, height // 2 + 1, 1),
        (height - 1, 0, 1, 1),
    ]:
        part = decode.decode(GOOD[name].data, 3, box=(top, left, min(h, height), w))
        np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])


def reduced_by_pillow(data: bytes, scale: int, channels: int) -> np.ndarray:
    """The whole JPEG [ceil(H/scale),ceil(W/scale),channels] as libjpeg reduces it for Pillow; not turned upright."""
    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data)) as image:
        height, width = image.height, image.width
        image.draft(mode, (width // scale, height // scale))
        pixels = np.asarray(image.convert(mode))
    return pixels.reshape(-(-height // scale), -(-width // scale), channels)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_reduced_part_is_that_part_of_the_reduced_image(channels, progressive):
    """The box rounded outward to whole pixels of the reduced image, and never smaller than what was asked for."""
    data = odd_files.encode(odd_files.picture(height=333, width=421), "JPEG", progressive=progressive)
    whole = {scale: reduced_by_pillow(data, scale, channels) for scale in (1, 2, 4, 8)}
    rng = np.random.default_rng(0)
    scales = []
    for _ in range(40):
        h, w = rng.integers(1, 334), rng.integers(1, 422)
        top, left = rng.integers(334 - h), rng.integers(422 - w)
        shrink = 2.0 ** rng.uniform(0, 4)
        least = (max(1, int(h / shrink)), max(1, int(w / shrink)))
        scale = decode.reduction((top, left, h, w), least)
        part = decode.decode(data, channels, box=(top, left, h, w), least=least)
        rows, columns = slice(top // scale, -(-(top + h) // scale)), slice(left // scale, -(-(left + w) // scale))
        np.testing.assert_array_equal(part, whole[scale][rows, columns])
        assert part.shape[0] >= least[0] and part.shape[1] >= least[1]
        assert scale == 8 or (h < 2 * scale * least[0] or w < 2 * scale * least[1])
        scales.append(scale)
    assert set(scales) == {1, 2, 4, 8}


@pytest.mark.usefixtures("decoder")
def test_a_reduced_part_of_a_turned_image_is_turned():
    """Sizes that 8 divides: then reducing and turning may be exchanged."""
    stored = odd_files.picture(height=160, width=240)
    for orientation in range(1, 9):
        data = odd_files.encode(stored, "JPEG", exif=odd_files.exif(orientation))
        turned = decode.decode(
            odd_files.encode(reduced_by_pillow(data, 4, 3), "PNG", exif=odd_files.exif(orientation)), 3
        )
        part = decode.decode(data, 3, box=(16, 32, 80, 120), least=(20, 30))
        np.testing.assert_array_equal(part, turned[4:24, 8:38])


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 49, 5), (40, 60, 5, 5), (0, 0, 0, 5)])
def test_a_part_outside_the_image_is_a_mistake_of_the_caller(box):
    with pytest.raises(ValueError, match="is not inside an image of 48 x 64 pixels"):
        decode.decode(GOOD["plain.jpg"].data, 3, box=box)


# Bad files


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_says_what_is_wrong_with_it(name):
    data, reason = BAD[name]
    with pytest.raises(BadRecordError, match=reason):
        decode.decode(data, 3)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", [n for n in GOOD if "gif" not in n and "tiff" not in n])  # which may lack their end
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_refused(name, share):
    data = GOOD[name].data.removesuffix(odd_files.TRAILER)
    for options in ({}, {"box": (0, 0, 1, 1), "least": (1, 1)}):
        with pytest.raises(BadRecordError):
            decode.decode(data[: int(len(data) * share)], 3, **options)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_preview_has_an_end_marker_is_refused_when_it_is_cut(progressive):
    """The marker of a preview in the EXIF data, or of anything before the scans, is not the image's."""
    preview = odd_files.encode(odd_files.picture(3, 16, 16), "JPEG")
    picture = odd_files.picture()
    data = odd_files.encode(picture, "JPEG", exif=b"Exif\0\0" + preview, progressive=progressive)
    assert decode.decode(data, 3).shape == picture.shape
    end_of_preview = data.index(preview) + len(preview)
    with pytest.raises(BadRecordError, match="truncated before its pixels"):
        decode.decode(data[:end_of_preview], 3)
    for cut in (end_of_preview + (len(data) - end_of_preview) * 9 // 10, len(data) - 2):
        with pytest.raises(BadRecordError, match="without its end marker"):
            decode.decode(data[:cut], 3)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {})]
)
def test_no_image_larger_than_the_limit_is_decoded(kind, options):
    image = np.zeros((500, 400), np.uint8)
    data = odd_files.encode(image, kind, **options)
    assert decode.decode(data, 1, max_megapixels=0.2).shape == (500, 400, 1)
    with pytest.raises(BadRecordError, match=r"400 x 500 pixels, more than data\.max_megapixels=0\.19"):
        decode.decode(data, 1, max_megapixels=0.19)


def test_a_gif_whose_frame_is_larger_than_its_screen_is_measured_by_the_frame():
    data = bytearray(odd_files.encode(np.zeros((500, 400), np.uint8), "GIF"))
    data[6:10] = (1).to_bytes(2, "little") * 2  # the logical screen: 1 x 1
    with pytest.raises(BadRecordError, match="400 x 500 pixels"):
        decode.decode(bytes(data), 3, max_megapixels=0.1)


FUZZ = """
import collections, sys, zlib
import numpy as np
from PIL import Image
import odd_files
from imgcls_jax.data import decode, jpeg

def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data) + 1))
        if rng.random() < 0.3:
            at = min(at, int(rng.integers(64)))  # headers
        kind = rng.integers(4)
        if kind == 0:
            for place in rng.integers(len(data), size=rng.integers(1, 6)) if data else ():
                data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 30))]
        else:
            data[at:at] = rng.bytes(rng.integers(1, 30))
    return bytes(data)

def repaired(png):  # the checksums, or no damage would get as far as the decoder
    out, at = bytearray(png), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 <= len(out):
            out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)

rgb = odd_files.picture(height=28, width=40)
image = Image.fromarray(rgb)
encode = odd_files.encode
files = [
    encode(rgb, "JPEG", exif=odd_files.exif(6)), encode(rgb, "JPEG", progressive=True),
    encode(image.convert("CMYK"), "JPEG"), encode(rgb, "PNG", exif=odd_files.exif(3)),
    encode(image.quantize(16), "PNG", transparency=3), encode(rgb, "WEBP", exif=odd_files.exif(8)),
    encode(rgb, "WEBP", lossless=True), encode(rgb, "WEBP", save_all=True, append_images=[image.rotate(90)]),
    encode(image.quantize(16), "GIF"), encode(rgb, "TIFF", compression="tiff_lzw"),
]
rng = np.random.default_rng(0)
counts = collections.Counter()
for number in range(2500):
    data = mutated(files[number % len(files)], rng)
    if number % 3:
        data = repaired(data) if data.startswith(b"\\x89PNG") else data
    channels = 1 if number % 4 == 0 else 3
    try:
        out = decode.decode(data, channels, max_megapixels=1)
    except decode.BadRecordError as error:
        assert str(error).isprintable(), error
        counts["bad"] += 1
        continue
    assert out.dtype == np.uint8 and out.shape == (*decode.read_header(data).size, channels)
    counts["good"] += 1
print(dict(counts))
"""


def test_2500_damaged_files_crash_nothing_hang_nothing_and_raise_nothing_else(tmp_path):
    script = tmp_path / "fuzz.py"
    script.write_text(FUZZ)
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parent}"
    env = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = eval(done.stdout)
    assert counts["good"] + counts["bad"] == 2500 and min(counts.values()) > 250
    # libjpeg prints what it can live with, libpng what stops it, libtiff either; Python and OpenCV must say nothing.
    assert not [
        line for line in done.stderr.splitlines() if "UserWarning" in line or "[ WARN" in line or "[ERROR" in line
    ]
