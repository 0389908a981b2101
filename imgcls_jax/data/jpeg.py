"""Decodes a part of a JPEG, reduced while decoding: an optional extension in C on libjpeg-turbo (`_jpeg.c`).

It is compiled when the package is installed, where libjpeg-turbo's headers and a C compiler are (Debian and Ubuntu:
`apt-get install gcc libjpeg-dev`), and left out elsewhere. Whatever it cannot or would rather not decode is a
ValueError; `decode.py` then uses OpenCV, which decodes everything, and is about half as fast.
"""

from __future__ import annotations

import numpy as np

try:
    from imgcls_jax.data import _jpeg
except ImportError:  # not built, or built where another libjpeg was
    _jpeg = None  # type: ignore[assignment]

Box = tuple[int, int, int, int]

# End of image. Data that is cut short has none at its end, and a part above the cut would be decoded without notice.
_END = b"\xff\xd9"


def available() -> bool:
    """Whether the extension was built and can be loaded."""
    return _jpeg is not None


def size(data: bytes) -> tuple[int, int, int]:
    """(height, width, components) as the header has them: before any rotation in the EXIF data.

    Raises:
      ValueError: not a JPEG, damaged up to the first scan, or the extension is missing.
    """
    if _jpeg is None:
        raise ValueError("the JPEG decoder is not built")
    return _jpeg.size(data)


def decode_crop(data: bytes, channels: int, box: Box, least: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes one part of a JPEG, without the EXIF rotation, and without the GIL.

    The image is reduced by s = 8, 4 or 2, the largest for which the result is at least `least`, or not at all (s = 1):
    libjpeg makes each block of 8 x 8 pixels from its lowest 8/s x 8/s frequencies, which costs less than decoding and
    then averaging. The result is the box rounded outward to whole pixels of the reduced image:

        reduced[top // s : ceil((top + height) / s), left // s : ceil((left + width) / s)]

    where `reduced` [ceil(H/s), ceil(W/s), channels] is what libjpeg makes of the whole image, with its accurate DCT
    ("islow") and smooth ("fancy") chroma upsampling: for s = 1 the pixels that OpenCV and Pillow give.

    Args:
      data: the file's content.
      channels: 3 for RGB, 1 for grey (the luma of a colour image).
      box: (top, left, height, width) in pixels of the whole image; height and width above 0, inside the image.
      least: (height, width) that the result has at least if the box has; None: do not reduce.

    Returns:
      uint8 [h,w,channels].

    Raises:
      ValueError: with the reason: not a JPEG, truncated, damaged in the rows down to the end of the box (whatever
        libjpeg warns of is an error), not 8 bits, CMYK, larger than 2**27 pixels, or the extension is missing.
    """
    if _jpeg is None:
        raise ValueError("the JPEG decoder is not built")
    if not data.endswith(_END):
        raise ValueError("it does not end as a JPEG does")
    pixels, height, width = _jpeg.decode_crop(data, channels, box, least or (0, 0))
    return np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
