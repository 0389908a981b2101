"""Operations on the neighbourhood of each pixel of one image: pure functions from uint8 [H,W,C] to uint8 [H,W,C]."""

from __future__ import annotations

import math

import cv2
import numpy as np

from imgcls_jax.augment import colour

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # ImageFilter.SMOOTH


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Distances from the smoothed image times `factor`: 0 is blurred, 1 changes nothing, 2 is sharpened.

    ImageEnhance.Sharpness: the smoothed image has the pixels at the border as they are. Equal to Pillow but for what
    `colour.blend` leaves.
    """
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        filtered = cv2.filter2D(image, -1, _SMOOTH).reshape(image.shape)
        smooth[1:-1, 1:-1] = filtered[1:-1, 1:-1]
    return colour.blend(smooth, image, factor)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Convolves with a Gaussian of standard deviation `sigma` pixels, cut off at 3 sigma; the border is mirrored.

    torchvision's gaussian_blur within one level. Pillow's GaussianBlur, three box filters, is an approximation of it.
    """
    size = 2 * math.ceil(3 * sigma) + 1
    return cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)
