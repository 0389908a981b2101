"""Shrinks images for training, once and for all: most of the cost of an input pipeline is decoding big JPEGs."""

from __future__ import annotations

import dataclasses
import io

import cv2
from PIL import Image

from imgcls_jax.data import decode


@dataclasses.dataclass(frozen=True)
class Shrink:
    """From an image file to one whose short side is at most `short`, as FFCV does (arXiv:2306.12517).

    Attributes:
      short: the longest that a short side may be, in pixels.
      quality: JPEG quality of what is written, 1 to 100.
    """

    short: int
    quality: int

    def __call__(self, data: bytes) -> bytes:
        """Shrinks one image; the aspect ratio stays, to the pixel.

        Args:
          data: an image file of any kind that `decode.decode` reads.

        Returns:
          A JPEG file. The same bytes, if it is a JPEG of RGB or grey that needs no shrinking; else one of RGB without
          metadata, with a rotation in the EXIF data applied, shrunk by averaging areas.

        Raises:
          BadRecordError: the image cannot be decoded.
        """
        image = decode.decode(data, 3)
        height, width = image.shape[:2]
        scale = self.short / min(height, width)
        if scale >= 1:
            if _is_rgb_jpeg(data):
                return data
        else:
            size = (max(self.short, round(width * scale)), max(self.short, round(height * scale)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self.quality])[1].tobytes()

    @staticmethod
    def library() -> str:
        """What else the bytes depend on."""
        return f"OpenCV {cv2.__version__}"


def _is_rgb_jpeg(data: bytes) -> bool:
    """Whether a file, known to be readable, is a JPEG in RGB or grey. Reads the header only."""
    if data[:2] != b"\xff\xd8":
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.mode in ("RGB", "L")
