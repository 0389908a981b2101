"""The fastest 94% on Fashion-MNIST that we know of; benchmarks/speedrun.py measures it and what each part is worth.

| DATA | model | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- |
| fashion_mnist | airbench94 at half its width | Muon, 8 epochs | 11 minutes, 2 CPU cores | 0.944 (5 seeds) |
| any other | that of configs/resnet.py | | | |

Of airbench (arXiv:2404.00498) it has the network, the frozen filters that whiten, data on the device, mirror images,
crops, label smoothing and several views of a test image; Muon is of its successor
(github.com/KellerJordan/cifar10-airbench).
"""

from pathlib import Path

from imgcls_jax import config


def get_config(arg="digits"):
    """The config for one data set."""
    if arg != "fashion_mnist":
        return config.load(f"{Path(__file__).with_name('resnet.py')}:{arg}")
    c = config.for_data(arg)
    fashion_mnist(c)
    return c


def fashion_mnist(c):
    """28x28 grey images."""
    c.model.update(name="airbench94", width=32)
    c.data.on_device = True
    c.augment.device = ("pad_and_crop(1)", "flip()")
    c.batch_size, c.total_epochs, c.eval_every_steps = 256, 8.0, 0
    c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02, momentum=0.9, nesterov=True, freeze=("whiten/kernel",))
    c.schedule.update(name="linear", warmup_epochs=0.5)
    c.loss.label_smoothing = 0.1
    c.eval.tta = "flip_shift"
