"""What the tests know of every model: its parameter count, and the small images that it is tried on."""

# name: parameters for the variant's own number of classes and channels. Counts are those of the library that the
# variant names as its reference (tests/test_models_parity.py compares them with the library itself); the others' say
# where they come from.
COUNTS = {
    # LeCun et al. 1998 with full connectivity in C3.
    "lenet5": 61_706,
    # tests/test_models_airbench.py counts it in torch.
    "airbench94": 1_972_792,
    # 0.27, 0.46 and 0.85 million in table 6 of arXiv:1512.03385; these numbers for option A shortcuts and 10 classes.
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "resnext50_32x4d": 25_028_904,
    "seresnet18": 11_779_624,
    "seresnet34": 21_960_416,
    "seresnet50": 28_088_024,
    "seresnet101": 49_326_872,
    "seresnet152": 66_821_848,
    "legacy_seresnet50": 28_088_024,
    # 36.5 and 8.9 million in arXiv:1605.07146; tests/test_models_resnet.py counts them by a formula.
    "wrn28_10": 36_479_194,
    "wrn40_4": 8_949_210,
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_50x3_bit": 217_319_080,
    # recorded
    "vit_mu_patch16_224": 76_712,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_small_patch32_224": 22_878_952,
    "vit_small_patch32_384": 22_915_432,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch32_224": 306_535_400,
    "vit_large_patch32_384": 306_632_680,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_base_patch16_224": 86_585_320,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_base_patch16_reg4_gap_256": 86_615_272,
    "vit_base_patch16_siglip_224": 93_653_224,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    "mixer_b16_224": 59_880_472,
    "alexnet": 61_100_840,
    "googlenet": 13_004_888,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    # 0.8 million in table 2 of arXiv:1608.06993; tests/test_models_classics.py counts it by a formula.
    "densenet_bc_100_12": 769_162,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "tf_efficientnet_b0": 5_288_548,
    "tf_efficientnet_b1": 7_794_184,
    "tf_efficientnet_b2": 9_109_994,
    "tf_efficientnet_b3": 12_233_232,
    "tf_efficientnet_b4": 19_341_616,
    "tf_efficientnet_b5": 30_389_784,
    "tf_efficientnet_b6": 43_040_704,
    "tf_efficientnet_b7": 66_347_960,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite3": 8_197_096,
    "tf_efficientnet_lite4": 13_006_568,
    "efficientnetv2_s": 21_458_488,
    "mobilenetv3_small_100": 2_542_856,
    "mobilenetv3_large_100": 5_483_032,
}

# First match wins: regex of names: side of the images in tests of every model, as small as the architecture allows.
SIDES = [
    (r"^lenet5$", 28),
    (r"^alexnet$", 63),
    (r"^vit_.*patch32", 64),
    (r"^vit_.*patch14", 28),
    (r".*", 32),
]

# Names that differ from a shallower or narrower sibling only in depth and width: compiling their gradients takes longer
# than all the others, so forward and backward are run for them with the marker `slow`.
DEEPER = (
    r"^(se)?resnet(34|101|152)$|^seresnet50$|^resnet(32|56)$|^wrn40|^densenet_bc|^mobilenetv3_large|^vgg11$|^resnetv2_(101x1|50x3)|^wide_resnet|^wrn28|^densenet(161|169|201)$"
    r"|efficientnet_(b[1-7]|lite[1-4])$|^tf_efficientnet_b0$|^convnext_(small|base|large)$|^vgg(13|16|19)"
    r"|^(vit|deit|deit3)_(base|large)_(distilled_)?patch(16|32)_(224|384)$|^(vit|deit)_small_(distilled_)?patch16"
)

# Names whose parity test runs in CI: one a family, the small one.
FAST = [
    "resnet18",
    "resnet50",
    "seresnet50",
    "resnext50_32x4d",
    "legacy_seresnet50",
    "resnetv2_50x1_bit",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "convnext_tiny",
    "alexnet",
    "vgg11_bn",
    "googlenet",
    "densenet121",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
]
