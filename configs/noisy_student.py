"""Noisy student (arXiv:1911.04252): the teacher, and what `python -m imgcls_jax.self_train` makes of it.

| DATA | labelled / unlabelled | model; the student's noise | two rounds |
| --- | --- | --- | --- |
| digits | 100 / 1,337 | 3 stages of 1 block; shifts, pixel noise, stochastic depth | under a minute, 2 CPU cores |
| fashion_mnist, mnist | 1,000 / 59,000 | 3 stages of 1; random erasing, stochastic depth | 8 minutes of one CPU core |
| cifar10, cifar100 | 5,000 / 45,000 | ResNet-18; RandAugment, stochastic depth | GPU; not yet measured |
| imagenet2012 | 10% / 90% | EfficientNet-B0, B1, B2; RandAugment, dropout, stochastic depth | not yet measured |
| folder:PATH | train / --unlabelled=files:PATH | EfficientNet-B0; the same | GPU; not yet measured |

The student of round 1, 2, ... is as large as its teacher, on ImageNet larger. `imgcls_jax.main` with this file trains
the teacher alone, on the labelled images. --config.KEY=VALUE changes all rounds, --student.KEY=VALUE the students.
"""

from imgcls_jax import config


def get_config(arg="digits"):
    """The teacher's config for one data set."""
    c = config.for_data(arg)
    _of(arg).teacher(c)
    return c


def get_self_training(arg="digits"):
    """Values of the flags of imgcls_jax.self_train (`self_train.Plan`)."""
    return _of(arg).plan()


def get_student(c, number, arg="digits"):
    """Changes a copy of the teacher's config into that of the student of round 1, 2, ..."""
    _of(arg).student(c, number)


class Digits:
    """8x8 grey images, too small for RandAugment."""

    @staticmethod
    def plan():
        return {"unlabelled": "train[100:]", "rounds": 2, "min_confidence": 0.3, "per_class": 130}

    @staticmethod
    def teacher(c):
        c.data.train_split = "train[:100]"
        c.model.update(name="resnet20", stage_sizes=(1, 1, 1))
        c.batch_size, c.total_steps, c.log_every_steps = 32, 150, 50
        c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02)
        c.schedule.update(name="linear", warmup_steps=15)

    @staticmethod
    def student(c, number):
        c.batch_size, c.total_steps, c.data.pseudo_ratio = 64, 400, 7.0
        c.augment.device = ("pad_and_crop(1)", "noise(0.1)")
        c.model.drop_path = 0.2


class Grey:
    """28x28 grey images, halved by the stem; the network of configs/fixmatch.py.

    RandAugment as the noise (magnitude 9, 800 steps) gave less: 0.866 on train[55000:] where this gives 0.868.
    """

    @staticmethod
    def plan():
        return {"unlabelled": "train[1000:]", "rounds": 2, "min_confidence": 0.3, "per_class": 5900}

    @staticmethod
    def teacher(c):
        c.data.train_split = "train[:1000]"
        c.model.update(name="resnet20", stage_sizes=(1, 1, 1), width=32, stem="half", shortcut="conv")
        c.batch_size, c.total_steps, c.log_every_steps = 64, 1500, 50
        c.loss.label_smoothing = 0.1
        c.optimizer.update(name="muon", lr=0.01, weight_decay=0.02)
        c.schedule.update(name="linear", warmup_steps=50)

    @staticmethod
    def student(c, number):
        c.batch_size, c.total_steps, c.data.pseudo_ratio = 256, 800, 7.0
        c.loss.label_smoothing = 0.0  # the teacher's answers are smooth
        c.augment.device = (*c.augment.device, "random_erasing(p=0.5)")
        c.model.drop_path = 0.1


class Cifar:
    """32x32 colour images."""

    @staticmethod
    def plan():
        return {"unlabelled": "train[5000:]", "rounds": 3, "min_confidence": 0.3}

    @staticmethod
    def teacher(c):
        c.data.train_split = "train[:5000]"
        c.model.update(name="resnet18", stem="small")
        c.batch_size, c.total_steps = 256, 4000
        c.optimizer.update(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        c.schedule.update(name="cosine", warmup_steps=100)

    @staticmethod
    def student(c, number):
        c.total_steps, c.data.pseudo_ratio = 20_000, 7.0
        c.augment.host_train = ("rand_augment(2, 14)",)
        c.model.drop_path = 0.2


class ImageNet:
    """Section 3.1 of the paper but for the data: 10% of ImageNet for ImageNet, 90% for the 300 million images of JFT.

    RMSProp with the rate 0.128 for batches of 2,048, times 0.97 every 2.4 epochs of 350. Students have RandAugment, two
    operations of magnitude 27, dropout 0.5 and stochastic depth 0.2, and are larger each round. Labels of a confidence
    of 0.3. Epochs are counted over the labelled images: the student's are ten times as many, 350 over all images.
    """

    @staticmethod
    def plan():
        return {"unlabelled": "train[10%:]", "rounds": 2, "min_confidence": 0.3, "per_class": 1150}

    @staticmethod
    def teacher(c):
        c.data.train_split = "train[:10%]"
        c.model.update(name="efficientnet_b0", dtype="bfloat16", dropout=0.2, drop_path=0.2)
        c.batch_size, c.total_epochs, c.loss.label_smoothing = 2048, 350.0, 0.1
        c.optimizer.update(name="rmsprop", lr=0.128, momentum=0.9, b2=0.9, eps=1e-3, weight_decay=1e-5)
        c.optimizer.ema_decay = 0.999
        c.schedule.update(name="exponential", decay_factor=0.97, decay_epochs=2.4, warmup_epochs=5.0)

    @staticmethod
    def student(c, number):
        c.model.name, c.data.image_size = (("efficientnet_b1", 240), ("efficientnet_b2", 260))[min(number, 2) - 1]
        c.augment.host_train = (*c.augment.host_train, "rand_augment(2, 27)")
        c.model.update(dropout=0.5, drop_path=0.2)
        c.total_epochs, c.data.pseudo_ratio, c.loss.label_smoothing = 3500.0, 9.0, 0.0
        c.optimizer.ema_decay = 0.9999
        c.schedule.update(decay_epochs=24.0, warmup_epochs=50.0)


class Folder:
    """One's own photos: for weights that know photos already, as in configs/efficientnet.py."""

    @staticmethod
    def plan():
        return {"rounds": 1, "min_confidence": 0.3}

    @staticmethod
    def teacher(c):
        c.model.update(name="efficientnet_b0", dropout=0.2)
        c.batch_size, c.total_epochs, c.log_every_steps = 32, 20.0, 10
        c.optimizer.update(name="adamw", lr=5e-4, weight_decay=0.05, clip_norm=1.0)
        c.schedule.update(name="cosine", warmup_epochs=1.0)

    @staticmethod
    def student(c, number):
        c.augment.host_train = (*c.augment.host_train, "rand_augment(2, 27)")
        c.model.update(dropout=0.5, drop_path=0.2)
        c.total_epochs, c.data.pseudo_ratio = 80.0, 3.0


def _of(arg):
    return config.choose(
        {
            "digits": Digits,
            "mnist": Grey,
            "fashion_mnist": Grey,
            "cifar10": Cifar,
            "cifar100": Cifar,
            "imagenet2012": ImageNet,
            "folder": Folder,
        },
        arg,
    )
