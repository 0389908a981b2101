"""What the headers of JPEG and PNG files say, and whether the files are whole, without decoding them."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_END_OF_IMAGE = b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})  # a stuffed zero, TEM, and the restart markers
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of an image file before its pixels.

    Attributes:
      format: as Pillow names it: "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF".
      height, width: pixels, as they are stored.
      orientation: of the EXIF data, 1 to 8; 1: upright as it is stored; from 5 on height and width are exchanged.
      components: of a JPEG: 1 grey, 3 colour, 4 CMYK or YCCK; 0 for other formats.
      pixels_at: of a JPEG: where in the file its first scan begins; 0 for other formats.
    """

    format: str
    height: int
    width: int
    orientation: int = 1
    components: int = 0
    pixels_at: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) once upright."""
        return (self.height, self.width) if self.orientation < 5 else (self.width, self.height)


def read(data: bytes) -> Header | None:
    """The header of a JPEG or PNG file, known by its first bytes; None for any other file.

    Raises:
      ValueError: saying why, if the header is damaged or cut short.
    """
    try:
        if data.startswith(JPEG):
            return _jpeg(data)
        if data.startswith(PNG):
            return _png(data)
    except (struct.error, IndexError) as error:
        raise ValueError("truncated before its pixels") from error
    return None


def check_whole(data: bytes, header: Header) -> None:
    """Raises ValueError if a JPEG or PNG file is cut short, or a PNG's checksum tells that it is damaged.

    A JPEG ends with a marker that cannot occur within its scans; what follows it is of no interest. It has no checksum:
    bytes overwritten inside are noticed only where they break the code of the entropy coder, if at all.
    """
    if header.format == "JPEG" and not data.endswith(_END_OF_IMAGE) and data.find(_END_OF_IMAGE, header.pixels_at) < 0:
        raise ValueError("truncated (a JPEG without its end marker)")
    if header.format == "PNG":
        view = memoryview(data)
        for kind, start, end in _chunks(data):
            critical = not kind[0] & 0x20
            if critical and zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
                raise ValueError(f"damaged (the checksum of a PNG chunk of type {kind.decode('latin-1')!r} is wrong)")


def pixels_only(data: bytes) -> bytes:
    """A PNG file without the chunks that are not needed for its pixels: alpha of a palette, text, profiles, animation.

    libpng prints a warning for each harmless flaw in them, such as the colour profile that old programs wrote.
    """
    chunks = list(_chunks(data))
    if all(kind in _PIXEL_CHUNKS for kind, _, _ in chunks):
        return data
    return PNG + b"".join(data[start - 8 : end + 4] for kind, start, end in chunks if kind in _PIXEL_CHUNKS)


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that a block of EXIF data names; 1 if it names none or is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def _jpeg(data: bytes) -> Header:
    frame, turned, at = None, None, 2
    while True:
        while data[at] != 0xFF:  # libjpeg too passes over what stands between segments
            at += 1
        while data[at] == 0xFF:  # any number of them may stand before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _WITHOUT_LENGTH:
            continue
        if marker == 0xD9:
            raise ValueError("a JPEG without pixels")
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + max(2, length)]
        if marker in _START_OF_FRAME and frame is None:
            frame = struct.unpack_from(">xHHB", segment)
        elif marker == 0xE1 and turned is None and segment.startswith(b"Exif\0\0"):
            turned = orientation(segment)
        elif marker == 0xDA:
            break
        at += max(2, length)
    if frame is None:
        raise ValueError("a JPEG without a frame header")
    return Header("JPEG", frame[0], frame[1], turned or 1, frame[2], at)


def _png(data: bytes) -> Header:
    chunks = _chunks(data)
    kind, start, _ = next(chunks)
    if kind != b"IHDR":
        raise ValueError("a PNG without a header")
    width, height = struct.unpack_from(">II", data, start)
    turned = next((orientation(data[start:end]) for kind, start, end in chunks if kind == b"eXIf"), 1)
    return Header("PNG", height, width, turned)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the content of each chunk of a PNG up to its last; ValueError if it is cut short."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ValueError("truncated (a PNG without its end)")
        length, kind = struct.unpack_from(">I4s", data, at)
        start, end = at + 8, at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"truncated (in a PNG chunk of type {kind.decode('latin-1')!r})")
        yield kind, start, end
        at = end + 4
