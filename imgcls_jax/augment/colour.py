"""Operations on the grey levels of one image: pure functions from uint8 [H,W,C] to uint8 [H,W,C].

OpenCV does the work with tables made as Pillow makes them. Equal to Pillow pixel for pixel, unless the function says
otherwise. The input is never written to; where nothing changes, it is returned itself. On images that are not RGB
(C is not 3), colour has no meaning: `saturation`, `hue` and `grayscale` return the image as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# Weights of red, green and blue in a grey level (ITU-R 601-2), in the 16-bit fixed point of Pillow: exact in float32.
_LUMA = np.array([[19595, 38470, 7471]], np.float32) / 65536
_LEVELS = np.arange(256)


def luma(image: np.ndarray) -> np.ndarray:
    """The grey levels uint8 [H,W] of RGB [H,W,3], or the first channel of any other image.

    Pillow's convert("L") but for ties, one pixel in 10^5 of noise, which OpenCV rounds to even and Pillow up.
    """
    return cv2.transform(image, _LUMA) if image.shape[2] == 3 else image[..., 0]


def grayscale(image: np.ndarray) -> np.ndarray:
    """Every channel replaced with the grey level (see `luma`)."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB) if image.shape[2] == 3 else image


def blend(first: np.ndarray, second: np.ndarray, factor: float) -> np.ndarray:
    """first + factor * (second - first), cut off at 0 and 255: Image.blend, both uint8 [H,W,C].

    Pillow drops the fraction where OpenCV rounds, hence the last argument. What is left is float32's rounding next to a
    whole number: fewer than one value in 1,000 differs, by one level.
    """
    return cv2.addWeighted(first, 1 - factor, second, factor, -0.5 + 2e-4).reshape(second.shape)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Grey levels times `factor`: 0 is black, 1 changes nothing."""
    return _table(image, _blend_table(0, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances from the image's mean grey level times `factor`: 0 is one grey, 1 changes nothing."""
    grey = luma(image)
    return _table(image, _blend_table(int(cv2.sumElems(grey)[0] / grey.size + 0.5), factor))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances from each pixel's own grey times `factor`: 0 is grey-scale, 1 changes nothing; see `blend`."""
    return blend(grayscale(image), image, factor) if image.shape[2] == 3 else image


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Every hue turned by `shift` of a full circle, -0.5 to 0.5.

    In float32, and so within one level of torchvision's adjust_hue of a tensor. (That of a Pillow image is off by up to
    a few levels: it rounds hue and saturation to 8 bits on the way.)
    """
    if image.shape[2] != 3:
        return image
    hsv = cv2.cvtColor(image * np.float32(1 / 255), cv2.COLOR_RGB2HSV)  # hue in degrees, the others in 0 to 1
    degrees = hsv[..., 0] + np.float32(360 * shift)
    degrees[degrees >= 360] -= 360
    degrees[degrees < 0] += 360
    hsv[..., 0] = degrees
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), alpha=255)


def invert(image: np.ndarray) -> np.ndarray:
    """255 minus each value."""
    return cv2.bitwise_not(image).reshape(image.shape)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits of each value, 0 to 8."""
    return _table(image, _LEVELS & (256 - (1 << (8 - bits))))


def solarize(image: np.ndarray, threshold: float = 128) -> np.ndarray:
    """Inverts the values from `threshold` up; 256 changes nothing."""
    return _table(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addend: int, threshold: int = 128) -> np.ndarray:
    """Adds `addend` to the values below `threshold`, up to 255 (RandAugment's SolarizeAdd, arXiv:1909.13719)."""
    return _table(image, np.where(threshold > _LEVELS, np.minimum(_LEVELS + addend, 255), _LEVELS))


def equalize(image: np.ndarray) -> np.ndarray:
    """Gives each channel a flat histogram, as far as whole values allow: ImageOps.equalize."""

    def table(counts: np.ndarray) -> np.ndarray:
        present = counts[counts > 0]
        step = int(counts.sum() - present[-1]) // 255
        if len(present) <= 1 or step == 0:
            return _LEVELS
        below = np.cumsum(counts) - counts
        return np.minimum((step // 2 + below) // step, 255)

    return _table_per_channel(image, table)


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel so that its least value becomes 0 and its largest 255: ImageOps.autocontrast."""

    def table(counts: np.ndarray) -> np.ndarray:
        (present,) = np.nonzero(counts)
        low, high = int(present[0]), int(present[-1])
        if low == high:
            return _LEVELS
        scale = 255.0 / (high - low)
        return (_LEVELS * scale - low * scale).astype(np.int64).clip(0, 255)

    return _table_per_channel(image, table)


def _blend_table(start: int, factor: float) -> np.ndarray:
    """Image.blend of the value `start` and every other value, [256], in Pillow's float32, fractions dropped."""
    values = np.float32(start) + np.float32(factor) * (_LEVELS - start).astype(np.float32)
    return values.clip(0, 255)


def _table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, table.astype(np.uint8)).reshape(image.shape)


def _table_per_channel(image: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps each channel by the table [256] that `table` makes of its histogram [256] int64."""
    channels = image.shape[2]
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel().astype(np.int64) for c in range(channels)]
    tables = np.stack([table(count) for count in counts], axis=-1).astype(np.uint8)
    return cv2.LUT(image, tables.reshape(1, 256, channels)).reshape(image.shape)
