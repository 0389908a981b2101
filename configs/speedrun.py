"""On the way to the fastest 94% on Fashion-MNIST; benchmarks/speedrun.py measures it and what each part is worth.

| DATA | model | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- |
| fashion_mnist | 3 stages of 1, 32-64-128, half size | Muon, 10 epochs | 2 CPU cores, minutes | not yet 0.94 |
| any other | that of configs/resnet.py | | | |

Of airbench's tricks (arXiv:2404.00498) it has data on the device, mirror images, crops, label smoothing and several
views of a test image; Muon is of its successor (github.com/KellerJordan/cifar10-airbench).
"""

from pathlib import Path

from imgcls_jax import config


def get_config(arg="digits"):
    """The config for one data set."""
    c = config.load(f"{Path(__file__).with_name('resnet.py')}:{arg}")
    if arg == "fashion_mnist":
        fashion_mnist(c)
    return c


def fashion_mnist(c):
    """28x28 grey images; the learning rate, smoothing and schedule are those of configs/resnet.py."""
    c.model.stage_sizes = (1, 1, 1)
    c.data.on_device = True
    c.augment.device = ("pad_and_crop(1)", "flip()")
    c.eval.tta = "flip_shift"
    c.total_epochs, c.eval_every_steps = 10.0, 0
