"""Image files to arrays."""

from __future__ import annotations

import cv2
import numpy as np

from imgcls_jax.types import UserError

# By number of channels.
FLAGS = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}


class BadRecordError(UserError):
    """A record that is not a readable image. One string argument, so that it survives the way out of a worker."""


def decode(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image file (JPEG, PNG, BMP, WebP, ...) with OpenCV.

    Whatever the file holds (grey, palette, alpha, CMYK, 16 bits) becomes 8 bits of the wanted channels; alpha is
    dropped; a rotation in the EXIF data is applied.

    Args:
      data: the file's content.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [H,W,channels].

    Raises:
      BadRecordError: saying why, if it cannot be decoded.
    """
    if not data:
        raise BadRecordError("the file is empty")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), FLAGS[channels])
    except cv2.error as error:
        raise BadRecordError(f"not a readable image ({str(error).strip()})") from error
    if image is None:  # OpenCV's way to say so
        raise BadRecordError("not a readable image: truncated, damaged or of an unknown type")
    return image if image.ndim == 3 else image[:, :, None]
