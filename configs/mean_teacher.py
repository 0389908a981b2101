"""Mean Teacher (arXiv:1703.01780): few labelled images and many without labels, and an average that teaches.

| DATA | labelled, unlabelled | model | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- | --- |
| digits | 100, all 1,437 | ResNet of 3 blocks | SGD, 600 steps | 1 minute, 2 CPU cores; not yet measured | |
| fashion_mnist, mnist | 1,000, 59,000 | ResNet, 3 blocks | Muon, 1,500 steps | 6 minutes, 1 CPU core | 0.834, README |
| cifar10, cifar100 | 4,000, 10,000; all 50,000 | ResNet-18 | SGD, 100,000 steps | GPU; not yet measured | |
| imagenet2012 | a tenth, all | ResNet-50 | SGD, 75,000 steps | GPU or TPU, unmeasured | |
| folder:PATH | train, --config.data.unlabelled=files:FOLDER | ResNet-50 | SGD, 100 epochs | GPU | |

The weight is the paper's 100 for the mean over ten classes: 10 for our sum.
"""

from imgcls_jax import config


def get_config(arg="digits"):
    """The config for one data set."""
    c = config.for_data(arg)
    c.objective.update(name="mean_teacher", unlabelled_weight=10.0)
    # Both views are made as the labelled images are.
    c.augment.host_strong, c.augment.device_strong = c.augment.host_train, c.augment.device
    c.data.unlabelled = "train"
    c.optimizer.update(name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-4, ema_decay=0.999)
    c.optimizer.ema_warmup = True  # a run is short here: the random weights of its beginning must not stay in it
    c.schedule.name = "cosine"
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
    """8x8 grey images."""
    c.model.update(name="resnet20", stage_sizes=(1, 1, 1))
    c.data.update(train_split="train[:100]", unlabelled_ratio=4)
    c.augment.device_strong = ("pad_and_crop(1)", "noise(0.1)")
    c.batch_size, c.total_steps, c.log_every_steps, c.eval_every_steps = 32, 600, 50, 200
    c.optimizer.ema_decay = 0.99
    c.objective.ramp_up_steps = 200


def grey(c):
    """28x28 grey images, halved by the stem, for two CPU cores."""
    c.model.update(name="resnet20", stage_sizes=(1, 1, 1), width=32, stem="half", shortcut="conv")
    c.data.update(train_split="train[:1000]", unlabelled_ratio=3)
    c.batch_size, c.total_steps, c.log_every_steps, c.eval_every_steps = 64, 1500, 50, 500
    c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02, ema_decay=0.99)
    c.schedule.update(name="linear", warmup_steps=50)
    c.objective.ramp_up_steps = 500


def cifar10(c):
    """The paper's own network of 13 layers is not in the zoo."""
    c.model.update(name="resnet18", stem="small")
    c.data.update(train_split="train[:4000]", unlabelled_ratio=3)
    c.batch_size, c.total_steps, c.eval_every_steps = 64, 100_000, 10_000
    c.objective.ramp_up_steps = 40_000


def cifar100(c):
    """The same with a hundred labels a class, and the weight for a hundred classes."""
    cifar10(c)
    c.data.train_split = "train[:10000]"
    c.objective.unlabelled_weight = 1.0


def imagenet(c):
    """A tenth of the labels, as the paper's section 3.4; its network is a ResNeXt-152."""
    c.model.update(name="resnet50", dtype="bfloat16")
    c.data.update(train_split="train[:10%]", unlabelled_ratio=1)
    c.objective.ramp_up_steps = 6_000
    c.batch_size, c.total_steps, c.eval_every_steps = 512, 75_000, 5_000
    c.optimizer.update(lr=0.2, weight_decay=5e-5, ema_decay=0.9997)
    c.schedule.warmup_steps = 2_500


def folder(c):
    """One's own photos."""
    c.model.name = "resnet50"
    c.data.unlabelled_ratio = 3
    c.objective.ramp_up_steps = 1_000
    c.batch_size, c.total_epochs = 32, 100.0
