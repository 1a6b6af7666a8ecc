"""The forms that people run PyTorch in, and what each of them needs.

In: a contender's name. Out: its `Form`, the environment of its process, and what stands in its way
here. Each form has what PyTorch's own tuning guide recommends for it: a rival at less than its best
would flatter bngen.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bngen.models import MODELS
from bngen.options import PRECISIONS


@dataclass(frozen=True)
class Form:
    """One way to train with PyTorch.

    Attributes:
        channels_last: whether images and weights are NHWC in memory.
        compiler: the backend that `torch.compile` makes the step with; "" for none.
        allocator: a key of `ALLOCATORS`; "" for the system's.
        precision: ``float32``, or ``bfloat16`` under `torch.autocast`; weights are float32 in both.
    """

    channels_last: bool = False
    compiler: str = ""
    allocator: str = ""
    precision: str = "float32"


FORMS: Mapping[str, Form] = {
    "eager": Form(),
    "channels-last": Form(channels_last=True),
    "compile": Form(compiler="inductor"),
    "compile-channels-last": Form(channels_last=True, compiler="inductor"),
    "backend": Form(compiler="bngen"),
    "backend-channels-last": Form(channels_last=True, compiler="bngen"),
    "jemalloc": Form(allocator="jemalloc"),
    "jemalloc-channels-last": Form(channels_last=True, allocator="jemalloc"),
    "tcmalloc": Form(allocator="tcmalloc"),
    "tcmalloc-channels-last": Form(channels_last=True, allocator="tcmalloc"),
    "bf16": Form(channels_last=True, precision="bfloat16"),
    "jemalloc-bf16": Form(channels_last=True, allocator="jemalloc", precision="bfloat16"),
    "tcmalloc-bf16": Form(channels_last=True, allocator="tcmalloc", precision="bfloat16"),
}


@dataclass(frozen=True)
class Allocator:
    """A library that replaces malloc.

    Attributes:
        libraries: names to look for, the best first.
        package: what Debian calls the package.
        variables: settings in the environment.
    """

    libraries: tuple[str, ...]
    package: str
    variables: Mapping[str, str]


ALLOCATORS: Mapping[str, Allocator] = {
    # The guide's settings, but for the decay. It writes 9000000000 ms and means: keep memory, never
    # give it back. jemalloc 5.3 gives all of it back at such a number (450,000 page faults a step
    # of DenseNet-121); -1 is how jemalloc's manual spells "never".
    "jemalloc": Allocator(
        ("jemalloc",), "libjemalloc2",
        {"MALLOC_CONF": "oversize_threshold:1,background_thread:true,metadata_thp:auto,"
                        "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
    ),
    "tcmalloc": Allocator(("tcmalloc", "tcmalloc_minimal"), "libtcmalloc-minimal4", {}),
}  # fmt: skip


def precision(name: str, ours: str = PRECISIONS[0]) -> str:
    """The precision of a contender's convolutions; bngen's levels have all the same."""
    return FORMS[name].precision if name in FORMS else ours


def environment(name: str) -> dict[str, str]:
    """What a contender adds to its process's environment; see `obstacle` for what is missing."""
    allocator = ALLOCATORS.get(FORMS[name].allocator) if name in FORMS else None
    if allocator is None:
        return {}
    loaded = (find_library(allocator), os.environ.get("LD_PRELOAD", ""))
    return {"LD_PRELOAD": ":".join(filter(None, loaded)), **allocator.variables}


def obstacle(name: str, program: str) -> str:
    """Why a contender cannot run here; "" where nothing is known to stand in its way.

    Args:
        name: a form of PyTorch or a fusion level.
        program: what it is to train.
    """
    if name not in FORMS:
        return ""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install 'bngen[torch]')"
    if program not in MODELS:
        return f"{program} has no PyTorch module to compare with (name a built-in)"
    needed = FORMS[name].allocator
    if needed and not find_library(ALLOCATORS[needed]):
        package = ALLOCATORS[needed].package
        hint = f"install {package}, or put its folder into LD_LIBRARY_PATH"
        return f"there is no {needed} here ({hint})"
    return ""


def find_library(allocator: Allocator) -> str:
    """What to preload: the library of LD_LIBRARY_PATH, else the system's; "" if there is none."""
    folders = [Path(f) for f in os.environ.get("LD_LIBRARY_PATH", "").split(":") if f]
    for name in allocator.libraries:
        for folder in folders:
            if found := sorted(folder.glob(f"lib{name}.so*")):
                return str(found[0].resolve())
        if found := ctypes.util.find_library(name):
            return found
    return ""
