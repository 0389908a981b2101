"""LeNet-5 (LeCun et al., 1998), in its own time's form: tanh, average pooling.

| DATA | recipe | cost | test top-1 |
| --- | --- | --- | --- |
| digits | Adam, 60 epochs | 20 seconds, 2 CPU cores | about 0.98 |
| mnist, fashion_mnist | Adam, 15 epochs | 3 minutes, 2 CPU cores | about 0.99, 0.90; see README |
| cifar10, cifar100 | Adam, 30 epochs | 5 minutes, 2 CPU cores | about 0.6, 0.3 |
| imagenet2012, folder:PATH | 32x32 pixels, Adam, 10 epochs | decoding dominates | for comparison only |

`--config.model.modern=True` has ReLU and max pooling.
"""

from imgcls_jax import config


def get_config(arg="digits"):
    """The config for one data set."""
    c = config.for_data(arg)
    c.model.name = "lenet5"
    c.batch_size = 128
    c.optimizer.update(name="adam", lr=2e-3, weight_decay=0.0)
    c.schedule.update(name="cosine", warmup_epochs=1.0)
    c.total_epochs = config.choose(
        {
            "digits": 60.0,
            "mnist": 15.0,
            "fashion_mnist": 15.0,
            "cifar10": 30.0,
            "cifar100": 30.0,
            "imagenet2012": 10.0,
            "folder": 10.0,
        },
        arg,
    )
    if c.data.image_size > 32:
        c.data.image_size = 32
    return c
