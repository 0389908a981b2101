"""Every key of a run, declared once, with its unit and choices; loading, saving and comparing of configs.

`configs/NAME.py` calls `base()` and overrides. The result is locked: an unknown key or a wrong type is refused.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgcls_jax.types import ConfigError, UserError, nearest

T = TypeVar("T")

# Keys that may differ between a checkpoint and the run that continues it: they change no number that is trained.
# (Another mesh gives the same sums in another order: equal to about 1e-6, not to the last bit.)
FREE_KEYS = (
    r"^log_every_steps$",
    r"^eval_every_steps$",
    r"^checkpoint_every_(steps|minutes)$",
    r"^checkpoint\.",
    r"^sharding\.",
    r"^wandb\.",
    r"^eval\.",
    r"^data\.(data_dir|num_threads|num_workers|on_device|eval_split|on_error)$",
)


def base() -> ConfigDict:
    """The whole config with its defaults; recipes in configs/ override what they need."""
    c = ConfigDict()
    c.seed = 0  # every random number of the run follows from it
    c.batch_size = 128  # examples per step, over all devices and processes
    c.total_epochs = 10.0  # passes over the training split; may be a fraction
    c.total_steps = 0  # optimizer steps; wins over total_epochs when above 0
    c.log_every_steps = 50  # steps between lines of metrics.jsonl
    c.eval_every_steps = 0  # steps between evaluations; 0: at the end only
    c.checkpoint_every_steps = 0  # steps between checkpoints; 0: not by steps (there is always one at the end)
    c.checkpoint_every_minutes = 10.0  # minutes between checkpoints; 0: not by time

    c.model = m = ConfigDict()
    m.name = "vit_tiny_patch16_224"  # a name in imgcls_jax.models.MODELS
    m.dtype = "float32"  # compute dtype: float32 | bfloat16 (parameters are always float32)
    # Overrides of the named variant: None keeps the variant's own value; a model that lacks the field refuses it.
    m.patch_size = placeholder(int)  # ViT: pixels
    m.width = placeholder(int)  # ViT: features D; ResNet, airbench: channels of the first stage
    m.depth = placeholder(int)  # ViT: number of blocks; wide ResNet: of convolutions, 6n + 4
    m.num_heads = placeholder(int)  # ViT: attention heads
    m.mlp_dim = placeholder(int)  # ViT: hidden features of the MLP
    m.pool = placeholder(str)  # ViT: cls | gap | map
    m.pos_embed = placeholder(str)  # ViT: learned | sincos2d
    # ResNet: imagenet (7x7 stride 2, max pool) | space_to_depth (the same for TPUs) | half (3x3 stride 2) | small (3x3)
    m.stem = placeholder(str)
    m.stage_sizes = placeholder(tuple)  # ResNet, ConvNeXt: blocks per stage
    m.block_sizes = placeholder(tuple)  # DenseNet: layers per block
    m.se_ratio = placeholder(float)  # ResNet: squeeze-and-excitation width relative to the block's; 0: none
    m.shortcut = placeholder(str)  # ResNet, where shapes differ: conv (1x1 and batch norm) | pad (zeros)
    m.modern = placeholder(bool)  # LeNet: ReLU and max-pool instead of tanh and average-pool
    m.dropout = placeholder(float)  # dropout rate, where the architecture has dropout
    m.drop_path = placeholder(float)  # stochastic depth rate of the last block
    # ViT: what the backward pass computes again to save memory: none | dots (all but products with parameters) | full
    m.remat = placeholder(str)
    m.scan = placeholder(bool)  # ViT: one compiled block scanned over depth; compiles faster

    c.init = i = ConfigDict()
    # Weights to start from: a .safetensors, .pth or .npz file, a folder, a work directory, or hf:OWNER/NAME; "": none.
    i["from"] = ""
    i.preprocessing = True  # take data.mean, data.std and the crop and filter of augment.host_eval from the weights

    c.data = d = ConfigDict()
    d.name = (
        "digits"  # digits | a TFDS name (fashion_mnist, ...) | folder:PATH | manifest:PATH | hf:PATH or hf:OWNER/NAME
    )
    d.data_dir = placeholder(str)  # where TFDS data sets are prepared; None: TFDS's own default
    # Splits may be sliced and added up: train[:90%], train[10%:], train[:5000], train[100:200], train+validation.
    d.train_split = "train"  # split to train on
    d.eval_split = ""  # split to evaluate on; "": validation where there is one, else test
    d.unlabelled = ""  # what fixmatch and mean_teacher learn from too: a split (train[1000:]), or files:FOLDER
    d.unlabelled_ratio = 1  # unlabelled images a step for each labelled one
    # A file of pseudo-labels that imgcls_jax.self_train wrote: its images are trained on like labelled ones; "": none.
    d.pseudo_labels = ""
    d.pseudo_ratio = 1.0  # pseudo-labelled images in the training stream for each labelled one; 0.01 to 100
    d.positive_class = ""  # one class against the rest: its name; "": all classes
    d.mix = ()  # more to train on: ((name, weight), ...), their split train; data.name has weight 1.0
    d.sampling = "uniform"  # uniform | balanced (each class as often) | weighted (as the records' weights say)
    d.repeats = 1  # positions in a row that a drawn record fills, each augmented anew (repeated augmentation)
    d.image_size = 8  # pixels, height and width of what the model sees
    d.channels = 1  # 1: grey | 3: RGB
    d.mean = (0.5,)  # per channel or one for all, in units of 0..1 pixels
    d.std = (0.5,)  # per channel or one for all, in units of 0..1 pixels
    d.on_error = "raise"  # a record that cannot be read: raise (stop) | skip (a blank in its place, counted and named)
    d.max_megapixels = 100.0  # width x height / 1e6 of the largest image that is decoded: against decompression bombs
    d.num_threads = 0  # decoding threads; 0: one a core
    d.num_workers = 0  # decoding processes; 0: threads only
    d.on_device = False  # keep the training images on every device: for sets held in memory, no augment.host_train

    c.augment = a = ConfigDict()
    # Each is a list of calls, such as ("random_resized_crop()", "flip()"); the size is data.image_size unless given.
    a.host_train = ()  # per image on the host, training: names in imgcls_jax.augment.host.HOST
    a.host_eval = ()  # per image on the host, evaluation: the same names
    a.device = ()  # per batch inside the jitted step, training: names in imgcls_jax.augment.device.DEVICE

    # The strong view of unlabelled images; the weak view is made as the labelled images are.
    a.host_strong = ()  # per image on the host: the same names
    a.device_strong = ()  # per batch inside the jitted step: the same names as for device

    c.optimizer = o = ConfigDict()
    o.name = "adamw"  # sgd | lars | adam | adamw | nadamw | rmsprop | lamb | lion | adafactor | adopt | muon
    o.lr = 1e-3  # peak learning rate
    o.weight_decay = 1e-4  # strength; what it means is said by decay
    # decoupled (each step takes lr * weight_decay of a parameter off) | l2 (weight_decay * parameter is added to its
    # gradient) | "": the method's own, which is l2 for sgd, lars, adam and rmsprop, decoupled for the others.
    o.decay = ""
    # Regexes of parameters without decay; gamma is layer scale's.
    o.decay_exclude = (r"(bias|scale|gamma)$", r"(cls_token|pos_embed|probe)$")
    o.momentum = 0.9  # sgd, lars, rmsprop, muon; adafactor (0 there keeps no first moment)
    o.nesterov = True  # sgd, lars, muon
    o.b1 = 0.9  # adam, adamw, nadamw, lamb, lion, adopt; muon's inner adam
    o.b2 = 0.999  # adam, adamw, nadamw, lamb, lion, adopt; rmsprop's decay
    o.eps = 1e-8  # adam, adamw, nadamw, lamb, adopt, rmsprop
    o.clip_norm = 0.0  # clip gradients to this global L2 norm; 0: off
    o.centralise = False  # take the mean over a kernel's inputs off its gradient (arXiv:2004.01461)
    o.sam_rho = 0.0  # SAM (arXiv:2010.01412): distance to where the step's gradient is, such as 0.05; 0: off
    o.lookahead_steps = 0  # Lookahead (arXiv:1907.08610): steps of the fast weights to one of the slow; 0: off
    o.lookahead_step_size = 0.5  # how far the slow weights, which are the result, go towards the fast ones, 0..1
    # Schedule-free (arXiv:2405.15682) sgd, adam or adamw, with schedule.name=constant; momentum (sgd) or b1 says where
    # between the steps' points (0) and their average (1), which is the result, the gradient is taken.
    o.schedule_free = False
    o.accumulate_steps = 1  # micro-batches per step, each batch_size / accumulate_steps examples
    # What starts from weights (init.from); "body" in place of a regex is all but the classifier; first match wins.
    o.freeze = ()  # regexes of parameters that never train; batch norms frozen so keep their statistics
    # ((regex, when), ...): frozen until `when`, a step or, if below 1, a fraction of the run; freeze wins.
    o.unfreeze = ()
    # With freeze=("body",) and no augmentation: run the body once over the training split, as host_eval makes images.
    o.cache_features = False
    o.lr_multipliers = ()  # ((regex, factor), ...): what the learning rate of these parameters is multiplied by
    o.layer_decay = 1.0  # the learning rate times this for each layer below the head, such as 0.75; 1: off
    # At most one average of parameters and BN statistics is kept and evaluated beside the raw weights.
    o.ema_decay = 0.0  # exponential moving average: decay per step; 0: off
    o.ema_warmup = False  # at step t the decay is at most (1 + t) / (10 + t)
    o.swa_start = 0.0  # equally weighted average (SWA, arXiv:1803.05407) from this fraction of the run on; 0: off
    o.swa_every = 1  # steps between the weights that SWA averages

    c.schedule = s = ConfigDict()
    s.name = "cosine"  # cosine | linear | geometric | step | exponential | rsqrt | constant
    s.warmup_steps = 0  # linear warm-up from 0; wins over warmup_epochs when above 0
    s.warmup_epochs = 0.0  # linear warm-up in passes over the training split
    s.end_factor = 0.0  # cosine, linear, geometric: final learning rate as a fraction of the peak
    s.boundaries = (0.333, 0.667, 0.889)  # step: fractions of the run at which the rate drops
    s.decay_factor = 0.1  # step: factor of a drop; exponential: factor over decay_epochs
    s.decay_epochs = 2.4  # exponential: passes per factor
    s.timescale = 10_000  # rsqrt: steps

    c.loss = lo = ConfigDict()
    # Through a softmax: softmax_cross_entropy | softmax_focal | poly | brier; summed over the sigmoids of the classes:
    # sigmoid_binary_cross_entropy | sigmoid_focal | asymmetric; of the logits themselves: squared_error.
    lo.name = "softmax_cross_entropy"
    lo.label_smoothing = 0.0  # 0..1
    # sigmoid_binary_cross_entropy: targets become 1 above it, else 0, after smoothing and mixing, 0..1; None: stay.
    lo.target_threshold = placeholder(float)
    lo.focal_gamma = 2.0  # softmax_focal, sigmoid_focal: exponent of 1 - p
    lo.focal_alpha = placeholder(float)  # sigmoid_focal: weight of the classes that are there, 0..1; None: all alike
    lo.asymmetric_gamma_positive = 1.0  # asymmetric: exponent of 1 - p for the classes that are there
    lo.asymmetric_gamma_negative = 4.0  # asymmetric: exponent of p for the classes that are not
    lo.asymmetric_clip = 0.05  # asymmetric: probability below which a class that is not there has no loss
    lo.poly_epsilon = 2.0  # poly: factor of 1 - p, added to the cross-entropy
    lo.squared_weight = 1.0  # squared_error: weight of the class that is there against each that is not
    lo.squared_height = 1.0  # squared_error: logit of the class that is there; of the others it is 0
    lo.class_weights = "none"  # none | inverse (of the class's frequency) | effective (of its effective number)
    lo.effective_beta = 0.999  # class_weights=effective: 0..1; 0 weighs all classes alike, 1 would be inverse
    # Losses through a softmax see logits + this * log(class frequency) (tau of arXiv:2007.07314; 1 is exact); 0: off.
    lo.logit_adjustment = 0.0
    lo.aux_weight = 0.3  # weight of the losses of auxiliary classifiers, where a model has them (GoogLeNet)

    c.objective = ob = ConfigDict()
    # supervised | distill | fixmatch | mean_teacher (these two learn from data.unlabelled too) | supcon (features;
    # data.repeats=2)
    ob.name = "supervised"
    ob.unlabelled_weight = 1.0  # fixmatch, mean_teacher: of the unlabelled images' loss
    ob.ramp_up_steps = 0  # fixmatch, mean_teacher: steps in which that weight rises, exp(-5 (1 - step/steps)^2)
    ob.threshold = 0.95  # fixmatch: least probability of a pseudo-label
    ob.supcon_temperature = 0.1  # supcon: what cosines are divided by
    ob.projection_dim = 128  # supcon: numbers that the loss sees of an image

    ob.alpha = 0.9  # distill: weight of the teacher's answers; the labels' is 1 - alpha. 1: no label is looked at
    ob.temperature = 4.0  # distill: of the softmax of teacher and student
    ob.target = "soft"  # distill: soft (the teacher's probabilities) | hard (its likeliest class)
    ob.feature_weight = 0.0  # distill: weight of the distance to the teacher's pooled features; 0: none

    c.teacher = t = ConfigDict()
    # objective distill: work directories, or weights as in init.from; of several, --config.teacher.from=W1,W2, the
    # probabilities are averaged.
    t["from"] = ()
    t.name = ""  # a name in imgcls_jax.models.MODELS, where from names weights; a work directory knows its model
    t.dtype = "auto"  # compute dtype: auto (bfloat16, on CPU float32) | float32 | bfloat16
    # What a run finds when it starts and keeps in its own config.json:
    t.steps = ()  # checkpoint of each work directory (0 for other weights); (): the newest
    t.features = 0  # objective.feature_weight above 0: D of the teacher's pooled features; 0: ask the teacher

    c.sharding = sh = ConfigDict()
    # A mesh of data x fsdp x model devices; the batch is split over data and fsdp.
    sh.data = -1  # -1: all devices that are left
    sh.fsdp = 1  # devices that share one copy of the parameters
    sh.model = 1  # devices that share one layer (tensor parallelism)
    # First match wins: "replicate", "fsdp" (largest axis that divides, if the leaf is large), or a PartitionSpec as a
    # tuple over the leaf's last axes.
    sh.rules = ((r".*", "fsdp"),)

    c.eval = e = ConfigDict()
    e.batch_size = 256  # examples per evaluation step, over all devices and processes
    e.topk = (1, 5)  # for each k the share of examples whose label is among the k likeliest classes; 1 always is there

    # What the model is shown of each image in evaluation and prediction: "" (the image) | flip (its mirror image too)
    # | flip_shift (both, and both moved by a pixel two ways, 6 views); the probabilities are averaged.
    e.tta = ""

    c.checkpoint = k = ConfigDict()
    k.keep_last = 2  # newest checkpoints to keep
    k.keep_best = 1  # best checkpoints to keep, by best_metric, among steps that were evaluated
    # Of the evaluation split, larger is better: top1 or any other of eval.topk, for several labels map | f1_micro; ema_
    # before it: of the averaged weights. "": top1 or map.
    k.best_metric = ""

    c.debug = ConfigDict()
    # Trains on the first batch alone, without augmentation, dropout, stochastic depth and label smoothing: the training
    # loss must come near 0, or model, loss or learning rate are at fault.
    c.debug.overfit_batch = False

    c.wandb = w = ConfigDict()
    w.project = ""  # Weights & Biases project; "": off (needs the extra `wandb`; WANDB_MODE=offline works)

    return c.lock()


def load(spec: str) -> ConfigDict:
    """The config of "configs/vit.py" or "configs/vit.py:fashion_mnist".

    Raises:
      ConfigError: if the file does not exist, has no get_config, or does not know the argument.
    """
    get_config = function(spec, "get_config")
    if get_config is None:
        raise ConfigError(f"Config file '{spec.partition(':')[0]}' has no function get_config(arg).")
    return get_config()


def function(spec: str, name: str) -> Callable[..., Any] | None:
    """A function of a recipe, its parameter `arg` filled in where "FILE:ARG" has one; None if the file has no such.

    Raises:
      ConfigError: if the file does not exist or does not parse.
    """
    path, _, arg = spec.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"Config file '{path}' does not exist; pass --config=configs/NAME.py[:ARG].")
    module_spec = importlib.util.spec_from_file_location("imgcls_jax_recipe", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"Config file '{path}' does not parse: {error}.") from error
    found = getattr(module, name, None)
    return partial(found, arg=arg) if found is not None and arg else found


# What models see of each data set: size and channels, mean and standard deviation of the training split in units of
# 0..1 pixels, and the augmentation that is customary. `for_data` puts a row into a config.
_IMAGENET = {
    "image_size": 224,
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "host_train": ("random_resized_crop()", "flip()"),
    "host_eval": ("resize_centre_crop()",),
}
_CIFAR = {"image_size": 32, "channels": 3, "device": ("pad_and_crop(4)", "flip()")}
_DATA: dict[str, dict[str, Any]] = {
    "digits": {"image_size": 8, "channels": 1, "mean": (0.3055,), "std": (0.3762,), "device": ("pad_and_crop(1)",)},
    "mnist": {"image_size": 28, "channels": 1, "mean": (0.1307,), "std": (0.3081,), "device": ("pad_and_crop(2)",)},
    "fashion_mnist": {
        "image_size": 28,
        "channels": 1,
        "mean": (0.2860,),
        "std": (0.3530,),
        "device": ("pad_and_crop(2)", "flip()"),
    },
    "cifar10": {**_CIFAR, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "cifar100": {**_CIFAR, "mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)},
    "imagenet2012": _IMAGENET,
    "folder": _IMAGENET,
}
DATA = tuple(_DATA)  # every ARG that configs/ take; "folder" is written folder:PATH, manifest:PATH or hf:PATH
_OWN = ("folder", "manifest", "hf")  # kinds of data sets of one's own: all have the recipes of "folder"


def for_data(arg: str) -> ConfigDict:
    """`base()` with the groups `data` and `augment` filled in for the data set that ARG names.

    Raises:
      ConfigError: for an unknown ARG, naming the nearest.
    """
    row = choose(_DATA, arg)
    config = base()
    config.data.name = arg
    for key, value in row.items():
        group = config.augment if key in config.augment else config.data
        group[key] = value
    return config


def choose(recipes: dict[str, T], arg: str) -> T:
    """The entry of a recipe table that ARG names.

    "folder:PATH", "manifest:PATH" and "hf:PATH" find the entry "folder"; "imagenet2012_short256", the same images made
    smaller, finds "imagenet2012".

    Raises:
      ConfigError: for an unknown ARG, naming the nearest.
    """
    kind, _, path = arg.partition(":")
    key = "folder" if kind in _OWN and path else re.sub(r"_short[0-9]+$", "", arg)
    if key not in recipes or arg in _OWN:
        raise ConfigError(
            f"Unknown data set '{arg}' in --config=FILE:ARG{nearest(key, recipes)}; write folder:PATH, manifest:PATH "
            f"or hf:PATH for your own images. Known: {', '.join(sorted(recipes))}."
        )
    return recipes[key]


def variant(arg: str, names: Sequence[str]) -> tuple[str, str]:
    """(variant, DATA) of the ARG of a recipe that comes in several: "VARIANT:DATA", or one of both.

    Without a variant it is the first of `names`, without DATA digits.
    """
    first, _, rest = arg.partition(":")
    return (first, rest or "digits") if first in names else (names[0], arg)


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf, placeholders included, in sorted order."""
    for name in sorted(config.keys()):
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON, keys sorted; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """`base()` with `values` (as JSON gives them, lists for tuples) put in.

    Raises:
      ConfigError: if a key is unknown.
    """
    config = base()
    known = dict(leaves(config))

    def put(node: ConfigDict, tree: dict[str, Any], prefix: str) -> None:
        for name, value in tree.items():
            key = prefix + name
            if isinstance(value, dict) and name in node and isinstance(node[name], ConfigDict):
                put(node[name], value, key + ".")
            elif key not in known:
                raise ConfigError(f"Saved config has the unknown key '{key}'{nearest(key, known)}.")
            else:
                node[name] = _tuples(value)

    put(config, values, "")
    return config


def read(path: Path) -> ConfigDict:
    """The config that a run saved in W/config.json.

    Raises:
      UserError: if the file is not one, or not there.
    """
    if not path.exists():
        raise UserError(f"{path.parent} is not a work directory (it has no {path.name}); pass the --workdir of a run.")
    try:
        return from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a config that imgcls_jax saved ({error}).") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """What changed in a way that changes the trained numbers: "optimizer.lr: 0.001 -> 0.01" for each such key."""
    a, b = (json.loads(to_json(c)) for c in (old, new))
    for values in (a, b):  # the file's name says its content; it may lie elsewhere now
        values["data"]["pseudo_labels"] = Path(values["data"]["pseudo_labels"]).name
    flat_a, flat_b = (dict(leaves(ConfigDict(tree))) for tree in (a, b))
    return [
        f"{key}: {flat_a.get(key)} -> {flat_b.get(key)}"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key) and not any(re.search(free, key) for free in FREE_KEYS)
    ]
