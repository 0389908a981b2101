"""Image files to arrays: RGB or grey, 8 bits, upright, whatever the file holds.

The content decides, never the name. JPEG and PNG are decoded by OpenCV, which is faster; CMYK JPEGs and all other
formats by Pillow, which reads every kind of them. Where the optional extension of `data/jpeg.py` is installed, parts of
JPEGs are decoded by it.

What becomes 8-bit RGB: grey is repeated; palettes are looked up; alpha is dropped, not blended (the colours under
transparent pixels show, as with Pillow's `convert("RGB")`, which timm and torchvision call); CMYK is converted without
a colour profile, as Pillow does; of 16 bits the high byte stays (Pillow clips 16-bit grey at 255 instead, which makes
it white). Floats and 32-bit integers, of which nobody knows what white is, are refused. Of an animation the first frame
counts.

A file that is cut short is refused, never half grey. Bytes overwritten inside a file cannot be noticed by any decoder
where the format has no checksum (JPEG, BMP, GIF, TIFF, WebP).
"""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
from PIL import Image

from imgcls_jax.data import headers, jpeg
from imgcls_jax.types import UserError

# The formats that are read: Pillow knows more, and starts other programs for some.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

MAX_MEGAPIXELS = 100.0

# OpenCV's flags, by scale; without the name's colour space, which is a flag of its own.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# (top, left, height, width), in pixels of the upright image.
Box = tuple[int, int, int, int]

# The limit is `max_megapixels`, looked at before decoding; Pillow's own one would only warn.
Image.MAX_IMAGE_PIXELS = None
# What is wrong with a file becomes a BadRecordError, or does not matter (a damaged EXIF tag): no noise besides. Only
# libjpeg, within OpenCV, prints a line for damage that it can live with.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


class BadRecordError(UserError):
    """A record that is not a readable image. One string argument, so that it survives the way out of a worker."""


def decode(
    data: bytes,
    channels: int,
    *,
    box: Box | None = None,
    least: tuple[int, int] | None = None,
    header: headers.Header | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> np.ndarray:
    """Decodes an image file, or a part of it.

    Args:
      data: the file's content.
      channels: 3 for RGB, 1 for grey.
      box: the part that is wanted; None: the whole image.
      least: (height, width); a JPEG may be reduced by s = 2, 4 or 8 (the largest that is possible) while it is decoded,
        as long as the result is at least so large: each pixel is then about the mean of s x s. The result is the box
        rounded outward to whole pixels of the reduced image. None: never reduce.
      header: what `read_header` found, if it was asked.
      max_megapixels: the largest width x height / 1e6; the header is asked, before anything is decoded.

    Returns:
      uint8 [H,W,channels], or [h,w,channels] of the box.

    Raises:
      BadRecordError: saying why, if it cannot be decoded.
    """
    header = header or read_header(data)
    if header.height * header.width > 1e6 * max_megapixels:
        raise BadRecordError(
            f"it has {header.width} x {header.height} pixels, more than data.max_megapixels={max_megapixels:g} allows"
        )
    try:
        headers.check_whole(data, header)
    except ValueError as error:
        raise _unreadable(error) from error
    height, width = header.size
    part = _stored_box(box or (0, 0, height, width), header)
    if header.orientation >= 5 and least is not None:
        least = least[::-1]
    if header.format == "JPEG" and header.components in (1, 3):
        image = _jpeg_part(data, channels, header, part, least)
    else:
        png = header.format == "PNG"
        image = _opencv(headers.pixels_only(data), channels, 1) if png else _pillow(data, channels)
        image = _cut(image, part, header, 1)
    return np.ascontiguousarray(_upright(image, header.orientation))


def file_format(data: bytes) -> str:
    """One of FORMATS, by the content; BadRecordError if it is none of them."""
    return read_header(data).format


def reduction(box: Box, least: tuple[int, int] | None) -> int:
    """The largest of 8, 4, 2 and 1 by which the box can be reduced and be at least `least` (height, width)."""
    top, left, height, width = box
    for scale in (8, 4, 2):
        rows, columns = _reduced(top, height, scale), _reduced(left, width, scale)
        if least and rows.stop - rows.start >= least[0] and columns.stop - columns.start >= least[1]:
            return scale
    return 1


def _reduced(start: int, length: int, scale: int) -> slice:
    """Pixels start .. start + length of a line, in the line reduced by `scale`, rounded outward."""
    return slice(start // scale, -(-(start + length) // scale))


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [H,W,1] or [H,W,3] to [H,W,channels], 1 or 3: what `decode` does for files, for images held in arrays."""
    if image.shape[2] == channels:
        return image
    out = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY if channels == 1 else cv2.COLOR_GRAY2RGB)
    return out.reshape(*image.shape[:2], channels)


def _unreadable(reason: object) -> BadRecordError:
    return BadRecordError(f"not a readable image: {' '.join(str(reason).split())}")


def read_header(data: bytes) -> headers.Header:
    """Format, size and orientation, without decoding; BadRecordError if they cannot be read."""
    if not data:
        raise BadRecordError("the file is empty")
    try:
        header = headers.read(data)
    except ValueError as error:
        raise _unreadable(error) from error
    if header is None:
        with _open(data) as image:
            turned = headers.orientation(image.info.get("exif", b""))
            header = headers.Header(str(image.format), image.height, image.width, turned)
    if not header.height or not header.width:
        raise _unreadable("it has no pixels")
    return header


def _open(data: bytes) -> Image.Image:
    """The image as Pillow opens it: its header is read. TIFF, alone, is put upright by Pillow."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise _unreadable(f"truncated, damaged or of an unknown type; it begins with {data[:8]!r}") from error
    except Exception as error:  # Pillow lets out whatever a damaged header causes
        raise _unreadable(f"{type(error).__name__}: {error}") from error


def _pillow(data: bytes, channels: int) -> np.ndarray:
    """The whole image as it is stored, [H,W,channels]."""
    with _open(data) as image:
        try:
            image.load()
            if image.mode in ("F", "I"):
                raise _unreadable("its pixels are floats or 32-bit integers; save it with 8 or 16 bits a channel")
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.info.pop("transparency", None)  # which `convert` would look at, and warn
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except BadRecordError:
            raise
        except Exception as error:
            raise _unreadable(f"{type(error).__name__}: {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _opencv(data: bytes, channels: int, scale: int) -> np.ndarray:
    """The whole image as it is stored, reduced by `scale`: [ceil(H/scale),ceil(W/scale),channels]."""
    flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | _REDUCED[scale])
    except cv2.error as error:
        raise _unreadable(error) from error
    if image is None:  # OpenCV's way to say so
        raise _unreadable("truncated or damaged")
    return image.reshape(*image.shape[:2], channels)


def _jpeg_part(
    data: bytes, channels: int, header: headers.Header, box: Box, least: tuple[int, int] | None
) -> np.ndarray:
    """The box, in pixels as they are stored, of a grey or colour JPEG."""
    try:
        return jpeg.decode_crop(data, channels, box, least)
    except ValueError:
        pass  # it is not installed, or cannot; OpenCV can, or else says what is wrong
    scale = reduction(box, least)
    return _cut(_opencv(data, channels, scale), box, header, scale)


def _cut(image: np.ndarray, box: Box, header: headers.Header, scale: int) -> np.ndarray:
    """The box, in pixels as they are stored, of a whole image reduced by `scale`."""
    if image.shape[:2] != (-(-header.height // scale), -(-header.width // scale)):
        raise _unreadable("its size is not what its header says")
    top, left, height, width = box
    return image[_reduced(top, height, scale), _reduced(left, width, scale)]


def _stored_box(box: Box, header: headers.Header) -> Box:
    """The box of the upright image in the image as it is stored."""
    top, left, height, width = box
    upright_height, upright_width = header.size
    bottom, right = upright_height - top - height, upright_width - left - width  # distances from those edges
    if min(top, left, bottom, right) < 0 or min(height, width) < 1:
        raise ValueError(f"box {box} is not inside an image of {upright_height} x {upright_width} pixels")
    # The corner by orientation: which of the distances are those from the first stored row and column.
    if header.orientation < 5:
        first = {1: (top, left), 2: (top, right), 3: (bottom, right), 4: (bottom, left)}[header.orientation]
        return (*first, height, width)
    first = {5: (left, top), 6: (right, top), 7: (right, bottom), 8: (left, bottom)}[header.orientation]
    return (*first, width, height)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The stored image [H,W,C] turned as the EXIF orientation says (Exif 2.32, tag 0x0112)."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    # What is first in the stored image: by orientation, whether the rows and the columns have to be reversed.
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return image[::rows, ::columns]
