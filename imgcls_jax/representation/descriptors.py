"""Features from before deep learning, of images [B,H,W,C] uint8 of any size: pixels, HOG, a bag of visual words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from imgcls_jax.types import UserError

# HOG (Dalal and Triggs, CVPR 2005): their orientations and blocks. The cells are a seventh of the image, 4 pixels of
# 28 and 32 of 224, so that every size has as many features.
ORIENTATIONS, BLOCK, CELLS = 9, 2, 7

# SIFT (Lowe, IJCV 60, 2004) at the points of a regular grid: where little is found to detect, as in small images, all
# points are better than few (Nowak et al., ECCV 2006). Patches have these sides, in steps of the grid.
PATCHES = (3, 4, 6)
WORDS = 512
SAMPLE_IMAGES, SAMPLE_DESCRIPTORS = 2000, 100  # what the words are learned from: images, and descriptors of each


def pixels(images: np.ndarray) -> np.ndarray:
    """Images [B,H,W,C] uint8 -> [B,H*W*C] float32, 0..1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def hog(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients: images [B,H,W,C] uint8 -> [B,D] float32.

    In colour, a pixel's gradient is that of the channel where it is largest. OpenCV 5 has no HOG; scikit-image has.

    Raises:
      UserError: scikit-image is not installed, or the image is smaller than a block.
    """
    try:
        from skimage.feature import hog as of_image
    except ImportError as error:
        raise UserError(
            "--features=hog needs scikit-image: pip install 'imgcls_jax[probe]', or leave hog out."
        ) from error
    size = min(images.shape[1:3])
    cell = max(2, size // CELLS)
    if size < BLOCK * cell:
        raise UserError(f"HOG needs images of at least {BLOCK * cell} pixels, not {size}: leave hog out.")
    settings = {"orientations": ORIENTATIONS, "pixels_per_cell": (cell, cell), "cells_per_block": (BLOCK, BLOCK)}
    return _each(lambda image: of_image(image, block_norm="L2-Hys", channel_axis=-1, **settings), images)


def root_sift(image: np.ndarray) -> np.ndarray:
    """SIFT descriptors at a grid, upright, as square roots of shares (RootSIFT, CVPR 2012): [H,W,C] -> [P,128] float32.

    The distance between roots is Hellinger's. A black patch has a descriptor of zeros, one
    of another even grey OpenCV's rounding noise.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[-1] == 3 else image[..., 0]
    step = max(3, min(grey.shape) // 16)
    counts = [length // step for length in grey.shape]
    margins = [(length - 1 - (n - 1) * step) // 2 for length, n in zip(grey.shape, counts, strict=True)]
    rows, columns = (margin + step * np.arange(n) for margin, n in zip(margins, counts, strict=True))
    # A descriptor is 4 x 4 histograms, each as wide as 1.5 times the keypoint's size: the patch is 6 sizes wide.
    points = [cv2.KeyPoint(float(x), float(y), side * step / 6, 0.0) for side in PATCHES for y in rows for x in columns]
    _, found = cv2.SIFT.create().compute(np.ascontiguousarray(grey), points)
    total = found.sum(axis=1, keepdims=True)
    return np.sqrt(found / np.maximum(total, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class VisualWords:
    """A vocabulary of SIFT descriptors, and with it the bag of words of an image (Csurka et al., 2004).

    Attributes:
      words: [W,128] float32.
    """

    words: np.ndarray

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images [B,H,W,C] uint8 -> [B,W] float32, the roots of the words' shares: rows of length 1.

        On such roots the cosine, or a linear classifier, compares the histograms themselves by Hellinger's kernel.
        """
        half_lengths = np.square(self.words).sum(axis=1) / 2
        bags = []
        for start in range(0, len(images), 32):  # so many at a time that one product is worth the BLAS's threads
            found = _each(root_sift, images[start : start + 32])
            # The nearest word: half the squared distance, without the descriptor's own length.
            nearest = (half_lengths - found @ self.words.T).argmin(axis=2)
            bags += [np.bincount(words, minlength=len(self.words)) / len(words) for words in nearest]
        return np.sqrt(bags).astype(np.float32)


def learn_words(images: Iterable[np.ndarray], *, seed: int = 0) -> VisualWords:
    """A vocabulary of at most WORDS words from descriptors of some images, each [H,W,C] uint8; labels are not asked."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    found = np.concatenate([rng.permutation(root_sift(image))[:SAMPLE_DESCRIPTORS] for image in images])
    words = min(WORDS, len(found))
    # Not k-means++: its hundreds of small products take minutes where BLAS has to wait for its threads.
    kmeans = MiniBatchKMeans(words, init="random", n_init=1, batch_size=4096, random_state=seed).fit(found)
    return VisualWords(kmeans.cluster_centers_.astype(np.float32))


def _each(describe: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """What `describe` says of each image, by a thread a core: [B,H,W,C] -> [B,D] float32."""
    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(describe, images))).astype(np.float32)
