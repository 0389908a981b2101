"""The compiled decoder gives the pixels of a full decode, cut and reduced; and nothing it is fed makes it crash."""

import concurrent.futures
import io
import shlex
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from imgcls_jax.data import jpeg

needs_extension = pytest.mark.skipif(
    not jpeg.available(), reason="the compiled JPEG decoder is not built here (it is optional)"
)

# What OpenCV's own libjpeg-turbo makes of a whole image, by (channels, reduction).
WHOLE = {
    (3, 1): cv2.IMREAD_COLOR,
    (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4,
    (3, 8): cv2.IMREAD_REDUCED_COLOR_8,
    (1, 1): cv2.IMREAD_GRAYSCALE,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
SAMPLINGS = {"444": 0x111111, "422": 0x211111, "420": 0x221111, "411": 0x411111, "440": 0x121111}


def picture(height: int, width: int) -> np.ndarray:
    """Waves and noise in colour: every pixel differs from its neighbours. uint8 [H,W,3]."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + y / 11), np.cos(x / 5 - y / 13), np.sin(x * y / 400)], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    return np.clip(127 + 100 * waves + noise, 0, 255).astype(np.uint8)


def encode(image: np.ndarray, sampling: str = "420", progressive: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling], cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def with_pillow(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def whole(data: bytes, channels: int, scale: int = 1) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), WHOLE[channels, scale])
    return image[:, :, None] if channels == 1 else image[:, :, ::-1]


def reduced_box(box: jpeg.Box, scale: int) -> tuple[slice, slice]:
    top, left, height, width = box
    return (
        slice(top // scale, -(-(top + height) // scale)),
        slice(left // scale, -(-(left + width) // scale)),
    )


def shape_of(box: jpeg.Box, scale: int) -> tuple[int, int]:
    rows, columns = reduced_box(box, scale)
    return rows.stop - rows.start, columns.stop - columns.start


def boxes(height: int, width: int, count: int = 12) -> list[jpeg.Box]:
    """The whole image, its four corners and edges, and boxes at random."""
    h, w = max(1, height // 2), max(1, width // 3)
    found = [(0, 0, height, width), (0, 0, h, w), (height - h, width - w, h, w), (0, width - w, h, w)]
    found += [(height - h, 0, h, w), (height - 1, width - 1, 1, 1), (0, 0, 1, width), (0, width - 1, height, 1)]
    rng = np.random.default_rng(height * width)
    for _ in range(count):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        found.append((top, left, int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1))))
    return found


def test_the_extension_is_built_where_it_can_be(tmp_path):
    """Its build may fail without a word, so a machine that can compile it must have it."""
    source = tmp_path / "try.c"
    source.write_text(
        "#include <Python.h>\n#include <stdio.h>\n#include <jpeglib.h>\n"
        "#ifndef LIBJPEG_TURBO_VERSION\n#error other libjpeg\n#endif\n"
        "int f(void) { struct jpeg_error_mgr e; return jpeg_std_error(&e) != 0; }\n"
    )
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    command = [*compiler, "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", str(source), "-ljpeg"]
    try:
        done = subprocess.run([*command, "-o", str(tmp_path / "try.so")], capture_output=True, timeout=60)
    except OSError:
        pytest.skip(f"no compiler: {compiler[0]}")
    if done.returncode:
        pytest.skip("no headers of Python or libjpeg-turbo")
    assert jpeg.available(), "headers and compiler are here, the decoder is not: `pip install -e .` builds it"


def test_without_the_extension_it_says_so(monkeypatch):
    monkeypatch.setattr(jpeg, "_jpeg", None)
    assert not jpeg.available()
    data = encode(picture(16, 16))
    with pytest.raises(ValueError, match="not built"):
        jpeg.size(data)
    with pytest.raises(ValueError, match="not built"):
        jpeg.decode_crop(data, 3, (0, 0, 16, 16))


@needs_extension
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (150, 203), (1, 1), (17, 3), (16, 300)])
def test_a_part_is_that_part_of_the_whole(size, sampling, progressive):
    image = picture(*size)
    data = encode(image[:, :, 1]) if sampling == "grey" else encode(image, sampling, progressive)
    assert jpeg.size(data) == (*size, 1 if sampling == "grey" else 3)
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for box in boxes(*size):
        rows, columns = reduced_box(box, 1)
        np.testing.assert_array_equal(jpeg.decode_crop(data, 3, box), pillow[rows, columns])
    for channels, scale in WHOLE:
        reference = whole(data, channels, scale)
        for box in boxes(*size):
            least = shape_of(box, scale)
            if any(shape_of(box, s) == least for s in (2, 4, 8) if s > scale):
                continue  # a box of a few pixels, for which a larger reduction does as well
            rows, columns = reduced_box(box, scale)
            np.testing.assert_array_equal(jpeg.decode_crop(data, channels, box, least), reference[rows, columns])


@needs_extension
@pytest.mark.parametrize(
    ("least", "scale"),
    [
        (None, 1),
        ((401, 401), 1),
        ((400, 201), 1),
        ((200, 200), 2),
        ((101, 100), 2),
        ((100, 100), 4),
        ((50, 50), 8),
        ((20, 20), 8),
        ((20, 300), 1),
    ],
)
def test_the_largest_reduction_that_is_large_enough(least, scale):
    data = encode(picture(420, 440))
    box = (16, 32, 400, 400)
    assert jpeg.decode_crop(data, 3, box, least).shape == (*shape_of(box, scale), 3)


@needs_extension
def test_colours_that_are_not_ycbcr():
    image = picture(60, 70)
    rgb = with_pillow(image, keep_rgb=True)
    assert b"Adobe" in rgb or b"JFIF" not in rgb
    pillow = np.asarray(Image.open(io.BytesIO(rgb)))
    np.testing.assert_array_equal(jpeg.decode_crop(rgb, 3, (5, 6, 40, 50)), pillow[5:45, 6:56])
    cmyk = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    assert jpeg.size(cmyk.getvalue()) == (60, 70, 4)
    with pytest.raises(ValueError, match="neither grey nor YCbCr nor RGB"):
        jpeg.decode_crop(cmyk.getvalue(), 3, (0, 0, 60, 70))


@needs_extension
@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 17, 16), (16, 0, 1, 1), (8, 8, 8, 9)]
)
def test_a_box_that_is_not_inside(box):
    with pytest.raises(ValueError, match="box is not inside"):
        jpeg.decode_crop(encode(picture(16, 16)), 3, box, (1, 1))


# Files that are not whole


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """(marker, content) of each segment; a scan's compressed data belongs to its SOS segment (0xDA)."""
    found, at = [], 2
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            while data[end] != 0xFF or data[end + 1] == 0:
                end += 1
        found.append((data[at + 1], data[at + 4 : end]))
        at = end
    return found


def join(parts: list[tuple[int, bytes]]) -> bytes:
    """The inverse of `segments`."""
    out = bytearray(b"\xff\xd8")
    for marker, content in parts:
        length = 2 + (1 + 2 * content[0] + 3 if marker == 0xDA else len(content))
        out += bytes([0xFF, marker]) + length.to_bytes(2, "big") + content
    return bytes(out + b"\xff\xd9")


def one_scan_a_channel(image: np.ndarray, repeat: int = 1) -> bytes:
    """A sequential JPEG whose three components have a scan each, as no common encoder writes; scans may be repeated."""
    planes = [segments(encode(image[:, :, i])) for i in range(3)]
    parts = []
    for marker, content in planes[0]:
        if marker == 0xC0:
            content = content[:5] + bytes([3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
        if marker != 0xDA:
            parts.append((marker, content))
    scans = [(0xDA, bytes([1, i + 1]) + content[2:]) for i, p in enumerate(planes) for m, content in p if m == 0xDA]
    return join(parts + scans * repeat)


@needs_extension
def test_one_scan_a_channel_and_too_many_of_them():
    image = picture(50, 60)
    data = one_scan_a_channel(image)
    np.testing.assert_array_equal(jpeg.decode_crop(data, 3, (9, 17, 33, 40)), whole(data, 3)[9:42, 17:57])
    many = one_scan_a_channel(image, repeat=33)  # 99
    np.testing.assert_array_equal(jpeg.decode_crop(many, 3, (9, 17, 33, 40)), whole(data, 3)[9:42, 17:57])
    with pytest.raises(ValueError, match="too many scans"):
        jpeg.decode_crop(one_scan_a_channel(image, repeat=34), 3, (9, 17, 33, 40))


@needs_extension
def test_a_progressive_image_that_lacks_scans():
    parts = segments(encode(picture(50, 60), progressive=True))
    assert join(parts) == encode(picture(50, 60), progressive=True)
    assert parts[-1][0] == 0xDA
    with pytest.raises(ValueError, match="lacks scans"):
        jpeg.decode_crop(join(parts[:-1]), 3, (0, 0, 8, 8))


@needs_extension
@pytest.mark.parametrize("progressive", [False, True])
def test_wherever_it_is_cut_short_it_is_refused(progressive):
    data = encode(picture(40, 40), progressive=progressive)
    for length in range(len(data)):
        with pytest.raises(ValueError):
            jpeg.decode_crop(data[:length], 3, (0, 0, 8, 8))  # a part that lies above most cuts
    for length in range(len(data) - 2):
        with pytest.raises(ValueError):
            jpeg.decode_crop(data[:length] + b"\xff\xd9", 3, (0, 0, 40, 40))


@needs_extension
@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(0, b"\x0c", "precision|8 bits"), (1, b"\xff\xdc\xff\xdc", "too many pixels"), (1, bytes(4), "Empty JPEG")],
)
def test_a_frame_header_that_cannot_be(offset, value, reason):
    data = encode(picture(40, 40))
    at = data.index(b"\xff\xc0") + 4 + offset
    with pytest.raises(ValueError, match=reason):
        jpeg.decode_crop(data[:at] + value + data[at + len(value) :], 3, (0, 0, 1, 1))


@needs_extension
@pytest.mark.parametrize("data", [b"", b"\xff\xd9", b"not an image\xff\xd9", b"\xff\xd8\xff\xd9", bytes(100)])
def test_what_is_no_jpeg(data):
    with pytest.raises(ValueError):
        jpeg.decode_crop(data, 3, (0, 0, 1, 1))
    with pytest.raises(ValueError):
        jpeg.size(data)


FUZZ = """
import sys
import numpy as np
from imgcls_jax.data import jpeg

rng = np.random.default_rng(0)
files = [bytes.fromhex(line) for line in sys.stdin]
refused = 0
for i in range(2000):
    data = bytearray(files[i % len(files)])
    for _ in range(rng.integers(1, 6)):
        kind, at = rng.integers(4), int(rng.integers(2, len(data)))
        end = at + int(rng.integers(1, 20))
        if kind == 0: data[at] = rng.integers(256)
        if kind == 1: del data[at:end]
        if kind == 2: data[at:at] = data[at:end]
        if kind == 3: data[at:end] = rng.bytes(end - at)
    data = bytes(data) + b"\\xff\\xd9"
    try:
        height, width, _ = jpeg.size(data)
        top, left = int(rng.integers(min(height, 50))), int(rng.integers(min(width, 50)))
        box = top, left, min(height - top, 60), min(width - left, 60)
        channels = (1, 3)[i % 2]
        least = (None, (1, 1), (12, 12), (25, 25))[i % 4]
        image = jpeg.decode_crop(data, channels, box, least)
        assert image.shape[2] == channels and image.size > 0
    except ValueError:
        refused += 1
print(refused)
"""


@needs_extension
def test_two_thousand_mutated_files_do_not_crash_it():
    image = picture(60, 70)
    files = [encode(image, s, p) for s in ("444", "420") for p in (False, True)] + [encode(image[:, :, 0])]
    done = subprocess.run(
        [sys.executable, "-c", FUZZ],
        input="\n".join(f.hex() for f in files),
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 200 < int(done.stdout) < 2000  # it was fed damaged files, and not only those


@needs_extension
def test_other_threads_run_while_it_decodes():
    data = encode(np.zeros((3000, 3000, 3), np.uint8), progressive=True)
    turns, seen = [0], []

    def work():
        seen.append(turns[0])
        jpeg.decode_crop(data, 3, (0, 0, 3000, 3000))
        seen.append(turns[0])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds: a thread runs until it lets go of the GIL by itself
    try:
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            turns[0] += 1
            time.sleep(0.0001)
    finally:
        sys.setswitchinterval(interval)
    assert seen[1] > seen[0]


@needs_extension
def test_many_threads_get_the_same_pixels():
    data = encode(picture(150, 203))
    reference = whole(data, 3)

    def decode(box):
        rows, columns = reduced_box(box, 1)
        return np.array_equal(jpeg.decode_crop(data, 3, box), reference[rows, columns])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decode, boxes(150, 203, count=400)))
