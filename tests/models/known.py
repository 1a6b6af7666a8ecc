"""What torchvision's models are and compute, for the built-in networks to be compared with.

In: a name. Out: the names, shapes and dtypes of its ``state_dict`` in order, as a digest, and some
logits of weights and images that follow from a formula. The tables below are made by
``python -m tests.models.known`` where torchvision is installed, and read where it is not.
"""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from bngen.models import MODELS, PUBLIC

CLASSES = 7
EXTENTS = {False: 32, True: 64}
"""Height and width of images in evaluation and in training, where the network takes them."""

TOO_LARGE = {
    "convnext_small", "densenet161", "densenet169", "densenet201", "efficientnet_b2",
    "efficientnet_b3", "resnet101", "resnext101_32x8d", "vgg16_bn", "wide_resnet50_2",
    "wide_resnet101_2", "deeplabv3_resnet101",
}  # fmt: skip
"""Of which no logits are computed: they differ from a smaller one in numbers that shapes show."""

TRAINED = (
    "deeplabv3_resnet50", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5",
)  # fmt: skip
"""Of which logits are computed in training, too: one of each family with BN."""


def digest(state: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """A digest of (name, shape, dtype) in order."""
    lines = [f"{name} {list(shape)} {dtype}" for name, shape, dtype in state]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def numbers(shape: tuple[int, ...], salt: int) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern, the same everywhere (splitmix64, Vigna 2015)."""
    z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(salt << 40)
    z *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return ((z ^ (z >> np.uint64(31))) / 2.0**63 - 1.0).reshape(shape)


def state_of(held: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights that keep the size of what goes through, and vectors that are not neutral."""
    state = {}
    for salt, (name, shape) in enumerate(held.items(), start=1):
        u, last = numbers(shape, salt), name.rpartition(".")[2]
        if last == "num_batches_tracked":
            state[name] = np.zeros(shape, np.int64)
        elif max(shape) < math.prod(shape):
            state[name] = u * math.sqrt(6.0 / math.prod(shape[1:]))
        else:
            about_one = last in ("weight", "running_var", "layer_scale")
            state[name] = 1.0 + 0.3 * u if about_one else 0.2 * u
    return state


def settings(name: str, training: bool) -> dict[str, object]:
    """What `bngen.models.make` is to be called with."""
    network = MODELS[name]
    return {
        "batch": 3 if training else 1,
        "image": max(EXTENTS[training], network.smallest(training)),
        "num_classes": CLASSES,
        "training": training,
        "dropout": 0.0 if network.has_dropout else None,
    }


def images(name: str, training: bool) -> np.ndarray:
    """A batch for it."""
    given = settings(name, training)
    return 1.7 * numbers((given["batch"], 3, given["image"], given["image"]), 1 << 20)


def some_of(logits: np.ndarray) -> tuple[float, ...]:
    """A few logits of the last image: of a segmentation, of its last pixel."""
    flat = logits.reshape(*logits.shape[:2], -1)[-1, :4, -1]
    return tuple(float(f"{v:.9g}") for v in flat)


def theirs(name: str, **sizes: object):
    """torchvision's model without dropout.

    Raises:
        NotInstalledError: where there is no torchvision.
    """
    from tests import zoo_models

    torchvision = zoo_models.torchvision()
    if name.startswith("deeplab"):
        sizes["weights_backbone"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the start values of two of them
        model = torchvision.models.get_model(name, weights=None, **sizes)
    return zoo_models.without_dropout(model)


def computed_by_torchvision(name: str, training: bool):
    """Its results, the first of which are the logits, and its state afterwards, in float64."""
    import torch

    sizes = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = theirs(name, num_classes=CLASSES, **sizes).double().train(training)
    held = model.state_dict()
    state = state_of({k: tuple(v.shape) for k, v in held.items()})
    for key, tensor in held.items():
        tensor.copy_(torch.from_numpy(state[key]))
    with torch.no_grad():
        found = model(torch.from_numpy(images(name, training)))
    found = found.values() if isinstance(found, dict) else found
    results = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    return [r.numpy() for r in results], {k: v.numpy() for k, v in model.state_dict().items()}


def main() -> None:
    """Print the tables of this file."""
    from tests.models.test_torchvision import OTHERS

    names = [name for name in sys.argv[1:] or PUBLIC if name not in OTHERS]
    states, logits = {}, {}
    for name in names:
        model = theirs(name)
        held = [
            (k, tuple(v.shape), str(v.dtype).removeprefix("torch."))
            for k, v in model.state_dict().items()
        ]
        count = sum(p.numel() for p in model.parameters())
        states[name] = (count, len(held), digest(held))
        for training in (False, True):
            if name in TRAINED if training else name not in TOO_LARGE:
                results, _ = computed_by_torchvision(name, training)
                logits[name, training] = some_of(results[0])
    for table, rows in (("STATES", states), ("LOGITS", logits)):
        print(f"{table} = {{")
        for key, (first, *rest) in rows.items():
            first = f"{first:_}" if table == "STATES" else first
            words = ", ".join([str(first), *map(repr, rest)]).replace("'", '"')
            print(f"    {key!r}: ({words}),".replace("'", '"'))
        print("}")


STATES = {
    "densenet121": (7_978_856, 727, "78633740687811d5"),
    "densenet161": (28_681_000, 967, "60926718c44c5ffa"),
    "densenet169": (14_149_480, 1015, "6cee15d84ec48e6f"),
    "densenet201": (20_013_928, 1207, "5111d89b8f158650"),
    "resnet18": (11_689_512, 122, "42a279da548e45fa"),
    "resnet34": (21_797_672, 218, "076c4708599e191a"),
    "resnet50": (25_557_032, 320, "030bc588532e7fd0"),
    "resnet101": (44_549_160, 626, "4bf99e758ff07004"),
    "resnext50_32x4d": (25_028_904, 320, "c981eb097c052800"),
    "resnext101_32x8d": (88_791_336, 626, "fa5ef8258ebd5d81"),
    "wide_resnet50_2": (68_883_240, 320, "a601254415603b9f"),
    "wide_resnet101_2": (126_886_696, 626, "b261e5f43dffc94a"),
    "mobilenet_v2": (3_504_872, 314, "3f9c08727ff9db96"),
    "mobilenet_v3_large": (5_483_032, 312, "23182c77d4a07473"),
    "mobilenet_v3_small": (2_542_856, 244, "1d68950cb9ce934e"),
    "mnasnet0_5": (2_218_512, 314, "60eb284ef48172c9"),
    "mnasnet1_0": (4_383_312, 314, "6d53a6f24ec4a671"),
    "efficientnet_b0": (5_288_548, 360, "7d826ebd3fceaec3"),
    "efficientnet_b1": (7_794_184, 508, "d7169894cb409798"),
    "efficientnet_b2": (9_109_994, 508, "fd4bc8e87896393c"),
    "efficientnet_b3": (12_233_232, 574, "4d95e97c14f911ab"),
    "regnet_y_400mf": (4_344_144, 384, "fc283d6ba1f40df4"),
    "regnet_y_800mf": (6_432_512, 340, "90e3551a8f749f1c"),
    "convnext_tiny": (28_589_128, 182, "4e979a954ac42620"),
    "convnext_small": (50_223_688, 344, "1fc77d35283b2b85"),
    "squeezenet1_0": (1_248_424, 52, "71b6a4933088a241"),
    "squeezenet1_1": (1_235_496, 52, "f91871a2a4e7b0d9"),
    "googlenet": (13_004_888, 364, "b17f6db767f36710"),
    "inception_v3": (27_161_264, 580, "4e84d8d36807875e"),
    "vgg16_bn": (138_365_992, 97, "d9ff6e8a62ef9611"),
    "shufflenet_v2_x0_5": (1_366_792, 338, "fd8fa0981a80e70b"),
    "shufflenet_v2_x1_0": (2_278_604, 338, "75f182f632857f4d"),
    "deeplabv3_resnet50": (39_638_869, 362, "73e96dd455419554"),
    "deeplabv3_resnet101": (58_630_997, 668, "060e8ee44833c129"),
}
LOGITS = {
    ("densenet121", False): (2.51892982, -0.827693186, 0.62578855, -0.72997223),
    ("densenet121", True): (0.490512289, 1.27698947, 0.390879801, -1.14012905),
    ("resnet18", False): (19.2744554, 2.07666262, 0.798249728, 0.57165777),
    ("resnet18", True): (-0.33836452, 2.40829258, 1.28588936, 1.62581226),
    ("resnet34", False): (-86.8066797, -177.698195, 45.3133545, -241.379819),
    ("resnet50", False): (-118.19812, 642.821779, -858.6542, 192.87244),
    ("resnext50_32x4d", False): (186.346191, 315.47676, -1472.33723, 11.4812129),
    ("resnext50_32x4d", True): (-1.11328349, 2.28507434, -4.86614519, 1.62659481),
    ("mobilenet_v2", False): (-2.94470937, 1.36874043, -1.74708675, -2.18712906),
    ("mobilenet_v2", True): (-0.571023545, 0.263389034, 0.494041328, 0.0791205824),
    ("mobilenet_v3_large", False): (6.78192695, 3.73890526, 5.5999726, 9.50687778),
    ("mobilenet_v3_small", False): (0.0166854144, 0.0143003235, 0.378991727, -0.216019598),
    ("mobilenet_v3_small", True): (0.564044281, 0.369940172, -0.0856817314, 0.380186983),
    ("mnasnet0_5", False): (-36.4391711, 40.0023544, 20.3427632, -54.1941543),
    ("mnasnet0_5", True): (-0.393458336, 0.360884539, -0.0122098363, -1.08922823),
    ("mnasnet1_0", False): (-5.04706054, 0.0712988025, 38.6055806, -1.1621625),
    ("efficientnet_b0", False): (0.331932633, -0.259607851, 0.00750335039, 0.250105505),
    ("efficientnet_b0", True): (0.422702424, -1.11152555, 0.088643785, -0.403418125),
    ("efficientnet_b1", False): (0.383841511, 0.00238364579, -0.292151596, 0.189628632),
    ("regnet_y_400mf", False): (-6.41280163, 2.31672954, 0.638493322, -2.7132624),
    ("regnet_y_400mf", True): (-4.81620772, -0.0298356802, 0.613694241, -4.06263696),
    ("regnet_y_800mf", False): (-2.36522071, -1.57499197, 7.25162801, 6.05412951),
    ("convnext_tiny", False): (-2.85133765, 0.267082967, -0.117143705, 0.285278307),
    ("squeezenet1_0", False): (0.682983946, 2.12565559, 0.0, 1.71344559),
    ("squeezenet1_1", False): (0.749456622, 0.330374024, 0.0, 3.40895162),
    ("googlenet", False): (-0.334056646, 1.70960151, 1.98365647, -3.27097755),
    ("googlenet", True): (-0.910954362, 0.976358833, 0.229336538, -1.32467675),
    ("inception_v3", False): (-0.191540124, 0.477798794, -0.499336162, 0.262911779),
    ("shufflenet_v2_x0_5", False): (-0.963389302, 2.5830874, 0.46819992, 1.21074933),
    ("shufflenet_v2_x0_5", True): (0.0382790411, 0.0204542625, 0.860477892, -0.600539225),
    ("shufflenet_v2_x1_0", False): (-3.19895547, -0.620761485, 4.97090799, -1.36020137),
    ("deeplabv3_resnet50", False): (63.9261014, -121.492234, -29.2413179, -120.439091),
    ("deeplabv3_resnet50", True): (-0.251693614, 0.695955452, 0.0169713545, -0.798352802),
}

if __name__ == "__main__":
    main()
