"""tf.data as its guide advises: decode_and_crop_jpeg, parallel with AUTOTUNE. Needs TensorFlow; see input.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from serve import serve

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf


def main() -> None:
    """Random-resized crop and flip from an image folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    args = parser.parse_args()
    files = sorted(str(path) for path in (args.folder / "train").rglob("*.jpg"))
    classes = sorted({os.path.dirname(file) for file in files})
    labels = [classes.index(os.path.dirname(file)) for file in files]

    def make(file: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        data = tf.io.read_file(file)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        image = tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], extent[:2]], 0), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (args.size, args.size)))
        return tf.cast(image, tf.uint8), label

    data = tf.data.Dataset.from_tensor_slices((files, labels)).shuffle(len(files)).repeat()
    data = data.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    data = data.batch(args.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    batches = data.as_numpy_iterator()
    serve(lambda: len(next(batches)[0]), version=tf.__version__)


if __name__ == "__main__":
    main()
