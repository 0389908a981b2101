"""TFDS builders that need no TensorFlow, for data sets whose stock builders do.

The stock builders of MNIST, Fashion-MNIST and CIFAR read their files through `tf.io.gfile` and write TFRecord. These
write the same features under the same name and version as ArrayRecord, so `tfds.data_source(name)` reads the result
with the stock code, in the stock order (TFDS shuffles by a hash of the example's key, which is the same here).

Importing this module imports TFDS (a few seconds): only `prepare` does, and only when it has something to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import tensorflow_datasets as tfds

# One split, column by column: column name -> array whose first axis is the example.
Columns = Mapping[str, np.ndarray]


def make(
    name: str,
    version: str,
    splits: Mapping[str, Columns],
    *,
    class_names: Mapping[str, Sequence[str]],
    description: str,
    data_dir: str,
) -> tfds.core.GeneratorBasedBuilder:
    """A builder that writes arrays as the TFDS data set `name`/`version` under `data_dir`.

    Args:
      name: TFDS's name of the data set.
      version: TFDS's version of the data set, for example "3.0.1".
      splits: by split name: "image" [N,H,W,C] uint8, stored as PNG, and other columns [N]: integers, stored as class
        labels, or strings.
      class_names: by label column, its class names in label order.
      description: goes into the data set's `dataset_info.json`.
      data_dir: TFDS's folder.
    """
    columns = next(iter(splits.values()))
    features: dict[str, tfds.features.FeatureConnector] = {
        column: tfds.features.ClassLabel(names=class_names[column]) if column in class_names else tfds.features.Text()
        for column in columns
    }
    features["image"] = tfds.features.Image(shape=columns["image"].shape[1:])

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(version)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
            del dl_manager  # nothing is downloaded
            return {split: self._generate_examples(columns) for split, columns in splits.items()}

        def _generate_examples(self, columns: Columns) -> Iterator[tuple[int, dict]]:
            others = {column: values.tolist() for column, values in columns.items() if column != "image"}
            for i, image in enumerate(columns["image"]):
                yield i, {"image": _png(image), **{column: values[i] for column, values in others.items()}}

    Builder.name = name
    return Builder(data_dir=data_dir)


def _png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 [H,W,C]; C is 1 or 3 (RGB). Given an array, features.Image would call TensorFlow."""
    if image.shape[-1] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image)[1].tobytes()
