"""Residual networks: small ones for small images and ResNet-50 for ImageNet.

| DATA | model | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- |
| digits | 3 stages of 1 block, 16-32-64 | SGD, 40 epochs | 1 minute, 2 CPU cores | 0.98 to 0.99 |
| fashion_mnist, mnist | 3 stages of 2, 32-64-128, half size | Muon, 8 epochs | 8 minutes, 2 CPU cores | see README |
| cifar10, cifar100 | ResNet-18, 3x3 stem | SGD, 100 epochs | GPU; not yet measured | about 0.95, 0.77 |
| imagenet2012 | ResNet-50 v1.5 | arXiv:1706.02677, 90 epochs | GPU or TPU; not yet measured | 0.763 published |
| folder:PATH | ResNet-50 v1.5 | as ImageNet, 100 epochs of batch 64 | GPU | |
"""

from imgcls_jax import config


def get_config(arg="digits"):
    """The config for one data set."""
    c = config.for_data(arg)
    c.optimizer.update(name="sgd", momentum=0.9, nesterov=True)
    c.schedule.name = "cosine"
    config.choose(
        {
            "digits": digits,
            "mnist": mnist,
            "fashion_mnist": fashion_mnist,
            "cifar10": cifar,
            "cifar100": cifar,
            "imagenet2012": imagenet,
            "folder": folder,
        },
        arg,
    )(c)
    return c


def digits(c):
    """8x8 grey images."""
    c.model.update(name="resnet20", stage_sizes=(1, 1, 1))
    c.batch_size, c.total_epochs, c.log_every_steps, c.eval_every_steps = 64, 40.0, 100, 220
    c.optimizer.update(lr=0.1, weight_decay=5e-4)
    c.schedule.warmup_epochs = 4.0


def fashion_mnist(c):
    """28x28 grey images, halved by the stem; two CPU cores do it in under twelve minutes."""
    c.model.update(name="resnet20", stage_sizes=(2, 2, 2), width=32, stem="half", shortcut="conv")
    c.augment.device = ("flip()",)
    c.batch_size, c.total_epochs, c.eval_every_steps = 256, 8.0, 468
    c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02)
    c.schedule.update(name="linear", warmup_epochs=0.5)
    c.loss.label_smoothing = 0.1


def mnist(c):
    """The same net; digits must not be mirrored."""
    fashion_mnist(c)
    c.augment.device = ("pad_and_crop(1)",)


def cifar(c):
    """32x32 colour images."""
    c.model.update(name="resnet18", stem="small")
    c.batch_size, c.total_epochs, c.eval_every_steps = 256, 100.0, 980
    c.optimizer.update(lr=0.2, weight_decay=5e-4)
    c.schedule.warmup_epochs = 5.0
    c.loss.label_smoothing = 0.1


def imagenet(c):
    """Section 5.1 of arXiv:1706.02677: 0.1 per 256 images, five epochs of warm-up, steps at 30, 60 and 80 epochs."""
    c.model.update(name="resnet50", dtype="bfloat16")
    c.batch_size, c.total_epochs, c.eval_every_steps = 1024, 90.0, 6255
    c.optimizer.update(lr=0.4, weight_decay=1e-4)
    c.schedule.update(name="step", warmup_epochs=5.0, boundaries=(30 / 90, 60 / 90, 80 / 90))


def folder(c):
    """One's own photos."""
    c.model.name = "resnet50"
    c.batch_size, c.total_epochs = 64, 100.0
    c.optimizer.update(lr=0.025, weight_decay=1e-4)
    c.schedule.warmup_epochs = 5.0
