"""The picture of a training batch: what it says of labels, and that it shows what the step sees."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, tiny_config
from PIL import Image

from imgcls_jax import build
from imgcls_jax.data import preview
from imgcls_jax.types import Spec

SPEC = Spec("pets", 3, ("cat", "dog", "a very long name of a class"), {"train": 1})


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ((0, 1, 0), "dog"),
        ((0.38, 0.62, 0), "0.62 dog\n0.38 cat"),
        ((1, 1, 0), "cat\ndog"),
        ((0, 0, 0), "(none)"),
        ((0.7, 0, 0), "0.70 cat"),
        ((0, 0, 1), "a very long name …"),
    ],
)
def test_labels_are_written_by_falling_share(target, text):
    assert preview.label_text(np.array(target, float), SPEC) == text


def test_names_that_would_break_the_drawing_do_not():
    spec = Spec("odd", 2, ("a$b$\n", "\udcff"), {"train": 1})
    assert preview.label_text(np.array([1.0, 0.0]), spec) == "a$b$ "
    assert preview.label_text(np.array([0.0, 1.0]), spec) == "?"


def test_stored_labels_of_both_tasks():
    np.testing.assert_array_equal(preview.stored_target(np.int32(1), SPEC), [0, 1, 0])
    several = np.array([1, 0, 1], np.float32)
    np.testing.assert_array_equal(preview.stored_target(several, SPEC), several)


def test_the_picture_shows_what_the_step_is_given(tmp_path):
    """With an augmentation that turns 49 of 64 pixels black, the right of each pair is darker than the left."""
    config = tiny_config(**{"augment.device": ("random_erasing(1.0, (0.7, 0.75), (1, 1), 'black')",)})
    run = build.build(config)
    batches = build.train_batches(run, 0)
    batch = next(batches)
    batches.close()
    images, targets = run.augment_step({k: batch[k] for k in ("image", "label", "mask")}, 0)
    assert images.shape == batch["image"].shape and float(images.mean()) < 0.4 * batch["image"].mean() / 255
    np.testing.assert_array_equal(np.argmax(targets, axis=1), batch["label"])
    preview.write(run, tmp_path / "w" / "preview.png")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["preview.png"]
    with Image.open(tmp_path / "w" / "preview.png") as image:
        picture = np.asarray(image.convert("L"), float)
    assert picture.shape[0] > 500 and picture.shape[1] > 1000
    # 8 columns of pictures; black in the columns of the augmented, grey to white digits in those of the stored.
    columns = np.array_split(picture[100 : picture.shape[0] // 2], 8, axis=1)
    bright = [(column[:, 30:-30] > 40).mean() for column in columns]
    assert min(bright[0::2]) > max(bright[1::2]) + 0.1


def test_the_program_writes_into_the_work_directory(tmp_path):
    command = [sys.executable, "-m", "imgcls_jax.data.preview", f"--config={ROOT / 'configs/lenet.py'}"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == f"Wrote {tmp_path / 'preview.png'}.\n" and done.stderr == ""
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size[0] > 1000
