"""Knowledge distillation: a small network learns the answers of a large one, `--config.teacher.from=W`.

| DATA | student | teacher | recipe | cost | test top-1 |
| --- | --- | --- | --- | --- | --- |
| digits, mnist, fashion_mnist | LeNet-5 | configs/resnet.py:DATA | configs/lenet.py | 2 CPU cores | see README |
| cifar10, cifar100 | ResNet-20 | configs/resnet.py:DATA | configs/resnet.py | GPU; not yet measured | |
| imagenet2012 | ResNet-50x1 (BiT) | such as resnetv2_50x3_bit | arXiv:2106.05237 | GPU or TPU, unmeasured | |
| folder:PATH | ResNet-18 | any | configs/resnet.py | GPU | |

W is the work directory of a run on the same classes, or, with --config.teacher.name=MODEL, a file of weights. As it is,
this is labelled distillation (section 2 of arXiv:1503.02531), 0.9 T^2 KL + 0.1 cross-entropy at T = 4. The others:

    --config.objective.alpha=1.0                       unlabelled: the teacher's answers only, no label is looked at
    --config.data.train_split='train[:10000]' --config.data.unlabelled='train[10000:]'    semi-supervised
    --config.objective.target=hard --config.objective.alpha=0.5      DeiT's hard labels (arXiv:2012.12877), on a second
                                                       head where the model has one: deit_*_distilled_*
    --config.objective.feature_weight=1.0              the teacher's pooled features too (after arXiv:1412.6550)
    --config.teacher.from=W1,W2                        an ensemble: the mean of the softened probabilities

Teacher and student see the same crop, and the same MixUp, of an image. With much of it and a long schedule that is
"function matching", arXiv:2106.05237, which is the recipe of imagenet2012.
"""

from pathlib import Path

from imgcls_jax import config

RESNET = {"cifar10": "resnet20", "cifar100": "resnet20", "imagenet2012": "resnetv2_50x1_bit", "folder": "resnet18"}
STUDENTS = {"digits": "lenet5", "mnist": "lenet5", "fashion_mnist": "lenet5", **RESNET}


def get_config(arg="digits"):
    """The config for one data set."""
    student = config.choose(STUDENTS, arg)
    recipe = "lenet.py" if student == "lenet5" else "resnet.py"
    c = config.load(f"{Path(__file__).with_name(recipe)}:{arg}")
    c.objective.update(name="distill", alpha=0.9, temperature=4.0)
    c.loss.label_smoothing = 0.0  # the teacher's answers are smooth
    if student != "lenet5":
        c.model.update(name=student, stem=None)
    if student == "resnetv2_50x1_bit":
        function_matching(c)
    return c


def function_matching(c):
    """As the authors' big_vision/configs/proj/distill/bit_i1k.py; its decay, not scaled by the rate, is 0.01 here.

    They publish 0.828 at 224 pixels, of their longest runs and a teacher that is not in our zoo, BiT-M R152x2 (0.830).
    """
    c.data.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    c.augment.device = ("mixup(1.0)",)
    c.objective.update(alpha=1.0, temperature=1.0)
    c.batch_size, c.total_epochs, c.eval_every_steps = 4096, 1200.0, 31275
    c.optimizer.update(name="adamw", lr=0.03, weight_decay=0.01, clip_norm=1.0)
    c.schedule.update(name="cosine", warmup_epochs=0.0, warmup_steps=5000)
