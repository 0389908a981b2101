"""Writes a few images of a prepared data set as a folder of PNG files, for experiments in which data are scarce.

python tools/few_images.py fashion_mnist FOLDER --train=10 --test=100

takes the first 10 training and the first 100 test images of every class: FOLDER/train/CLASS/0001.png, ...
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from imgcls_jax.data import sources


def main() -> None:
    """Reads the flags and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a data set that is held in memory: digits, mnist, fashion_mnist, cifar10, ...")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=10, help="training images of each class")
    parser.add_argument("--test", type=int, default=100, help="test images of each class")
    arguments = parser.parse_args()
    for split, count in (("train", arguments.train), ("test", arguments.test)):
        source = sources.open_source(arguments.name, split)
        for label, class_name in enumerate(source.spec.class_names):
            folder = arguments.folder / split / class_name.replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for number, i in enumerate(np.flatnonzero(source.labels() == label)[:count]):
                image = source[int(i)]["image"]
                assert isinstance(image, np.ndarray), "data sets of this size are held in memory, decoded"
                cv2.imwrite(str(folder / f"{number:04d}.png"), image[..., ::-1] if image.shape[2] == 3 else image)


if __name__ == "__main__":
    main()
