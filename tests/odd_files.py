"""Image files of every kind that people have, good ones with the pixels they must give, and bad ones."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64

TRAILER = b"what a camera's maker adds" + bytes(99)


@dataclasses.dataclass(frozen=True)
class Good:
    """A file that can be read: its content, its pixels [H,W,3], and by how many levels they may differ."""

    data: bytes
    pixels: np.ndarray
    within: int = 0


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth colours, uint8 [height,width,3]: what JPEG keeps well."""
    noise = np.random.default_rng(seed).integers(40, 216, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    """An image file, written by Pillow."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def ycck(rgb: np.ndarray) -> bytes:
    """A JPEG as Photoshop writes CMYK: YCC of the inverted inks, no black; Pillow writes the plain kind only."""
    inverted = np.asarray(Image.fromarray(255 - rgb).convert("YCbCr"))
    stored = np.dstack([255 - inverted, np.zeros(rgb.shape[:2], np.uint8)])  # Pillow inverts what it writes
    data = encode(Image.fromarray(stored, "CMYK"), "JPEG", quality=98, subsampling=0)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0  # the colour transform: none; 2 is YCCK
    return data[:at] + b"\x02" + data[at + 1 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@functools.cache
def bomb(size: int = 20_000) -> bytes:
    """A black 1-bit PNG of size x size pixels in a few kilobytes."""
    rows = zlib.compress(bytes(size * (1 + -(-size // 8))), 9)
    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def good() -> dict[str, Good]:
    """By file name. Names lie where the folder source reads only some: the content decides."""
    rgb = picture()
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    grey3 = np.repeat(grey[..., None], 3, axis=2)
    deep = (rgb.astype(np.uint16) << 8) | 77
    palette = Image.fromarray(rgb).quantize(16)
    palette3 = np.asarray(palette.convert("RGB"))
    alpha = np.tile(np.arange(WIDTH, dtype=np.uint8) * 4, (HEIGHT, 1))
    other = Image.fromarray(picture(1))
    jpeg = encode(rgb, "JPEG", quality=98, subsampling=0)
    sixteen_bit_tiff = cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes()
    return {
        "plain.jpg": Good(jpeg, rgb, 4),
        "progressive.jpg": Good(encode(rgb, "JPEG", quality=98, subsampling=0, progressive=True), rgb, 4),
        "grey.jpg": Good(encode(grey, "JPEG", quality=98), grey3, 3),
        "cmyk.jpg": Good(encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=98, subsampling=0), rgb, 5),
        "ycck.jpg": Good(ycck(rgb), rgb, 6),
        "rotated.jpg": Good(encode(np.rot90(rgb), "JPEG", quality=98, subsampling=0, exif=exif(6)), rgb, 4),
        "damaged_exif.jpg": Good(encode(rgb, "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0MM\0*\xff"), rgb, 4),
        "followed_by_more.jpg": Good(jpeg + TRAILER, rgb, 4),
        "a png, though.jpg": Good(encode(rgb, "PNG"), rgb),
        "grey.png": Good(encode(grey, "PNG"), grey3),
        "one_bit.png": Good(encode(Image.fromarray(grey > 128), "PNG"), np.where(grey3 > 128, 255, 0)),
        "sixteen_bits_grey.png": Good(encode(deep[..., 1], "PNG"), np.repeat(rgb[..., 1:2], 3, axis=2)),
        "sixteen_bits.png": Good(cv2.imencode(".png", deep[..., ::-1])[1].tobytes(), rgb),
        "palette.png": Good(encode(palette, "PNG"), palette3),
        "palette_with_alpha.png": Good(encode(palette, "PNG", transparency=bytes(range(16))), palette3),
        "alpha.png": Good(encode(np.dstack([rgb, alpha]), "PNG"), rgb),
        "grey_alpha.png": Good(encode(Image.merge("LA", [Image.fromarray(x) for x in (grey, alpha)]), "PNG"), grey3),
        "rotated.png": Good(encode(np.rot90(rgb, 2), "PNG", exif=exif(3)), rgb),
        "old_profile.png": Good(encode(rgb, "PNG", icc_profile=b"not a profile"), rgb),
        "1x1.png": Good(encode(rgb[:1, :1], "PNG"), rgb[:1, :1]),
        "lossy.webp": Good(encode(rgb, "WEBP", quality=100), rgb, 12),
        "lossless.webp": Good(encode(rgb, "WEBP", lossless=True), rgb),
        "alpha.webp": Good(encode(np.dstack([rgb, alpha]), "WEBP", lossless=True, exact=True), rgb),
        "animated.webp": Good(encode(rgb, "WEBP", lossless=True, save_all=True, append_images=[other]), rgb),
        "rotated.webp": Good(encode(np.rot90(rgb), "WEBP", lossless=True, exif=exif(6)), rgb),
        "plain.bmp": Good(encode(rgb, "BMP"), rgb),
        "a gif, though.png": Good(encode(palette, "GIF"), palette3),
        "animated gif.jpg": Good(encode(palette, "GIF", save_all=True, append_images=[other.quantize(16)]), palette3),
        "tiff.jpg": Good(encode(rgb, "TIFF", compression="tiff_lzw"), rgb),
        "tiff of 16 bits.jpg": Good(sixteen_bit_tiff, rgb),
        "tiff, cmyk.jpg": Good(encode(Image.fromarray(rgb).convert("CMYK"), "TIFF"), rgb, 1),
        "tiff, rotated.jpg": Good(encode(np.rot90(rgb), "TIFF", tiffinfo={0x0112: 6}), rgb),
        "line\nbreak, \u00e9\u4e2d\U0001f600.png": Good(encode(rgb[:30], "PNG"), rgb[:30]),
    }


def bad() -> dict[str, tuple[bytes, str]]:
    """By file name: the content, and a regex that the reason must match."""
    rgb = picture()
    jpeg, png, webp = encode(rgb, "JPEG", quality=98), encode(rgb, "PNG"), encode(rgb, "WEBP")
    at = png.index(b"IDAT") + 20
    whole_gif = encode(Image.fromarray(rgb).quantize(16), "GIF")
    return {
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "nearly.jpg": (jpeg[: len(jpeg) * 99 // 100], "truncated"),
        "half written.jpg": (jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), "truncated"),
        "header only.jpg": (jpeg[:20], "truncated"),
        "empty.jpg": (b"", "the file is empty"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "wrong checksum.png": (png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :], "checksum"),
        "half.webp": (webp[: len(webp) // 2], "not a readable image"),
        "half a gif.png": (whole_gif[: len(whole_gif) // 2], "truncated"),
        "half.bmp": (encode(rgb, "BMP")[:5000], "truncated"),
        "text.jpg": (b"Not an image.\n", "unknown type"),
        "page.png": (b"<!DOCTYPE html><html>404 Not Found</html>", "unknown type"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown type"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "unknown type"),
        "noise.jpg": (np.random.default_rng(0).bytes(3000), "unknown type"),
        "floats.jpg": (encode(rgb[..., 0].astype(np.float32), "TIFF"), "floats"),
        "bomb.png": (bomb(), r"20000 x 20000 pixels, more than data\.max_megapixels=100"),
    }


def make_folder(root: Path) -> dict[str, str]:
    """Writes all of them under root/train/a and one good file under root/test/a.

    Returns:
      The name of each bad file in root/train/a and the regex that its reason must match.
    """
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    for name, file in good().items():
        (folder / name).write_bytes(file.data)
    for name, (data, _) in bad().items():
        (folder / name).write_bytes(data)
    (folder / "link.jpg").symlink_to("plain.jpg")
    (folder / "broken link.jpg").symlink_to("nowhere.jpg")
    (folder / "directory.jpg").mkdir()
    reasons = {name: reason for name, (_, reason) in bad().items()}
    reasons |= {"broken link.jpg": "No such file", "directory.jpg": "Is a directory"}
    if os.geteuid():  # root may read anything
        (folder / "secret.jpg").write_bytes(good()["plain.jpg"].data)
        (folder / "secret.jpg").chmod(0)
        reasons["secret.jpg"] = "Permission denied"
    (root / "test" / "a").mkdir(parents=True)
    (root / "test" / "a" / "x.png").write_bytes(encode(picture(2), "PNG"))
    return reasons
