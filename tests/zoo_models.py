"""The zoo: unmodified models of torchvision and timm, and what is needed to import the two.

In: a model's name. Out: the model as its library makes it, without pretrained weights and with its
dropout at zero, since two runs that are compared would drop other elements.

torchvision's wheels are made for one build of PyTorch. Beside another they import as soon as the
schemas of their own operators exist, and the models of this list call none of those.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

TORCHVISION = """
    resnet18 resnet50 wide_resnet50_2 resnext50_32x4d densenet121 mobilenet_v2 mobilenet_v3_small
    mobilenet_v3_large vgg11_bn squeezenet1_1 mnasnet0_5 googlenet inception_v3 efficientnet_b0
    efficientnet_v2_s convnext_tiny regnet_y_400mf shufflenet_v2_x0_5
""".split()
TIMM = """
    resnet26d dla34 repvgg_a0 selecsls42b darknet53 ghostnet_050 ghostnetv2_100 hrnet_w18_small
    res2net50_14w_8s resnest14d skresnet18 cspresnet50 cspdarknet53 mixnet_s tf_efficientnet_b0
    xception41 legacy_xception dpn48b ese_vovnet19b_dw ese_vovnet19b_slim nf_resnet26 nf_regnet_b0
    dm_nfnet_f0
""".split()
NAMES = (*TORCHVISION, *TIMM)

LEAST_IMAGE = {"inception_v3": 299}
"""Its auxiliary classifier has windows that no smaller image fills."""

INSTALL = "the zoo needs torchvision and timm: pip install --no-deps torchvision timm && pip install pillow pyyaml safetensors huggingface_hub"  # noqa: E501

_RANDOM = {"Dropout": "p", "Dropout2d": "p", "StochasticDepth": "p", "DropPath": "drop_prob"}


class NotInstalledError(Exception):
    """torchvision or timm is missing; the message says what to install."""


def libraries() -> tuple[ModuleType, ModuleType]:
    """torchvision and timm.

    Raises:
        NotInstalledError: when one of them is missing.
    """
    try:
        return _torchvision(), importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{INSTALL} ({error})") from error


def torchvision() -> ModuleType:
    """torchvision alone.

    Raises:
        NotInstalledError: when it is missing.
    """
    try:
        return _torchvision()
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{INSTALL} ({error})") from error


def _torchvision() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _define_operators()
    return importlib.import_module("torchvision")


_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")


def _define_operators() -> None:
    """Schemas, without code, for the operators that torchvision's modules name."""
    spec = importlib.util.find_spec("torchvision")
    (folder,) = map(Path, spec.submodule_search_locations)
    sources = [folder / "_meta_registrations.py", *folder.glob("ops/*.py")]
    named = re.compile(r'(?:torchvision::|register_meta\(")(\w+)')
    for name in {n for path in sources for n in named.findall(path.read_text(encoding="utf-8"))}:
        if not hasattr(torch.ops.torchvision, name):
            _SCHEMAS.define(f"{name}(Tensor a) -> Tensor")


def make(name: str) -> nn.Module:
    """A model of the zoo, or any other that the two libraries have, in training mode."""
    torchvision, timm = libraries()
    if name in TORCHVISION or name not in timm.list_models():
        model = torchvision.models.get_model(name, weights=None)
    else:
        model = timm.create_model(name, pretrained=False)
    return without_dropout(model).train()


def without_dropout(model: nn.Module) -> nn.Module:
    """The model, which drops nothing any more."""
    for module in model.modules():
        if probability := _RANDOM.get(type(module).__name__):
            setattr(module, probability, 0.0)
    return model


def seeded(model: nn.Module, seed: int) -> None:
    """Give a model's vectors and scalars values of which none is zero or one.

    A scale that begins at zero, as in the last normalization of a residual branch, would hide all
    that stands before it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() <= 1 or max(p.shape) == p.numel():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
