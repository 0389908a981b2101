"""FixMatch (arXiv:2001.07685): few labelled images and many without labels.

| DATA | labelled, unlabelled | model | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- | --- |
| digits | 100, all 1,437 | ResNet of 3 blocks | SGD, 600 steps | 1 minute, 2 CPU cores; not yet measured | |
| fashion_mnist, mnist | 1,000, 59,000 | ResNet, 3 blocks | Muon, 1,500 steps | 9 minutes, 1 CPU core | 0.860, README |
| cifar10, cifar100 | 4,000, 10,000; all 50,000 | ResNet-18 | SGD, table 4 of the paper | GPU; not yet measured | |
| imagenet2012 | a tenth, all | ResNet-50 | appendix C of the paper | GPU or TPU, unmeasured | |
| folder:PATH | train, --config.data.unlabelled=files:FOLDER | ResNet-50 | SGD, 100 epochs | GPU | |
"""

from imgcls_jax import config

# What the paper calls strong: two operations of RandAugment, then a square that is cut out.
STRONG = "rand_augment(2, 10)"
CUT_OUT = ('random_erasing(p=1.0, scale=(0.02, 0.25), ratio=(1.0, 1.0), fill="black")',)


def get_config(arg="digits"):
    """The config for one data set."""
    c = config.for_data(arg)
    c.objective.update(name="fixmatch", threshold=0.95, unlabelled_weight=1.0)
    c.augment.host_strong = (*c.augment.host_train, STRONG)
    c.augment.device_strong = (*c.augment.device, *CUT_OUT)
    c.data.unlabelled = "train"
    c.optimizer.update(name="sgd", lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4, ema_decay=0.999)
    c.optimizer.ema_warmup = True  # a run is short here: the random weights of its beginning must not stay in it
    c.schedule.update(name="cosine", warmup_epochs=0.0)
    config.choose(
        {
            "digits": digits,
            "mnist": grey,
            "fashion_mnist": grey,
            "cifar10": cifar10,
            "cifar100": cifar100,
            "imagenet2012": imagenet,
            "folder": folder,
        },
        arg,
    )(c)
    return c


def digits(c):
    """8x8 grey images: too small for the strong operations to leave them what they are."""
    c.model.update(name="resnet20", stage_sizes=(1, 1, 1))
    c.data.update(train_split="train[:100]", unlabelled_ratio=4)
    c.augment.host_strong = ()
    c.augment.device_strong = ("pad_and_crop(1)", "noise(0.2)")
    c.batch_size, c.total_steps, c.log_every_steps, c.eval_every_steps = 32, 600, 50, 200
    c.optimizer.update(lr=0.05, ema_decay=0.99)


def grey(c):
    """28x28 grey images, halved by the stem, for two CPU cores."""
    c.model.update(name="resnet20", stage_sizes=(1, 1, 1), width=32, stem="half", shortcut="conv")
    c.data.update(train_split="train[:1000]", unlabelled_ratio=3)
    c.batch_size, c.total_steps, c.log_every_steps, c.eval_every_steps = 64, 1500, 50, 500
    c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02, ema_decay=0.99)
    c.schedule.update(name="linear", warmup_steps=50)


def cifar10(c):
    """Table 4 of the paper; its schedule ends at a fifth of the rate, this one at 0."""
    c.model.update(name="resnet18", stem="small")
    c.data.update(train_split="train[:4000]", unlabelled_ratio=7)
    c.batch_size, c.total_steps, c.eval_every_steps = 64, 2**20, 2**16


def cifar100(c):
    """The same with a hundred labels a class."""
    cifar10(c)
    c.data.train_split = "train[:10000]"
    c.optimizer.weight_decay = 1e-3


def imagenet(c):
    """Appendix C of the paper: 300 passes over the unlabelled images."""
    c.model.update(name="resnet50", dtype="bfloat16")
    c.data.update(train_split="train[:10%]", unlabelled_ratio=5)
    c.objective.update(threshold=0.7, unlabelled_weight=10.0)
    c.batch_size, c.total_steps, c.eval_every_steps = 1024, 75_000, 5_000
    c.optimizer.update(lr=0.4, weight_decay=3e-4, ema_decay=0.999)
    c.schedule.update(name="step", warmup_steps=1250, boundaries=(60 / 300, 120 / 300, 160 / 300, 200 / 300))


def folder(c):
    """One's own photos."""
    c.model.name = "resnet50"
    c.data.unlabelled_ratio = 3
    c.batch_size, c.total_epochs = 32, 100.0
