"""PyTorch's own samples of the calls that bngen takes: each is as in PyTorch, or left to it."""

from __future__ import annotations

import importlib
import random
import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bngen.torch_bridge.ops import SPELLINGS
from bngen.torch_bridge.vocabulary import OWN
from bngen.verification.tolerance import allowed
from tests.profiles import THOROUGH
from tests.torch_bridge.single import single

MOST = 4
"""Samples of a call in a quick run; there are hundreds of some."""
TYPES = torch.float32, torch.bool, torch.int64
"""What they are drawn in, the first of them that there is."""


def samples_table() -> Any:
    """PyTorch's table of its operators; it imports a test framework, of which nothing is used."""
    name = "expecttest"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        stand_in = types.ModuleType(name)
        stand_in.TestCase = unittest.TestCase
        sys.modules[name] = stand_in
    return importlib.import_module("torch.testing._internal.common_methods_invocations").op_db


FUNCTIONS = {id(f) for s in SPELLINGS for f in s.functions} | {
    id(k) for k in OWN if not isinstance(k, str)
}
METHODS = {m for s in SPELLINGS for m in s.methods} | {k for k in OWN if isinstance(k, str)}


def calls() -> Iterator[tuple[str, Any, Any]]:
    """Each way to call what bngen knows: a name, the operator's row, the function or method."""
    for row in samples_table():
        if row.supported_dtypes("cpu").isdisjoint(TYPES):
            continue
        name = f"{row.name}.{row.variant_test_name}".rstrip(".")
        for function in (row.op, *(alias.op for alias in row.aliases)):
            if id(function) in FUNCTIONS:
                yield f"{name} {function.__name__}", row, function
        if row.method_variant is not None and row.name in METHODS:
            yield f"{name} Tensor.{row.name}", row, row.name


CALLS = {name: (row, function) for name, row, function in calls()}


LEFT = {
    "div.floor_rounding", "div.trunc_rounding", "round.decimals_3", "round.decimals_neg_3",
    "norm.nuc", "matmul",
    "nn.functional.adaptive_max_pool2d", "nn.functional.pad.replicate_negative",
    "nn.functional.interpolate.trilinear",
}  # fmt: skip
"""Of these samples bngen takes none: options that it lacks, products that PyTorch is faster at."""


@pytest.mark.parametrize("name", CALLS)
def test_samples(name):
    taken = [check(*call) for call in samples(name)]
    assert any(taken) or name.split()[0] in LEFT, "all of it is left to PyTorch"


HANDFUL = random.Random(2).sample(sorted(n for n in CALLS if n.split()[0] not in LEFT), 5)


@pytest.mark.parametrize("name", HANDFUL)
def test_a_handful_compiled(name):
    assert any(check(*call, compiled=True) for call in samples(name))  # the first that is taken


def samples(name: str) -> Iterator[tuple[Any, tuple, dict]]:
    """Calls: a function, its arguments by position and by name."""
    row, function = CALLS[name]
    dtype = next(t for t in TYPES if t in row.supported_dtypes("cpu"))
    torch.manual_seed(0)
    needs = row.supports_autograd and dtype.is_floating_point
    drawn = list(row.sample_inputs("cpu", dtype, requires_grad=needs))
    if not THOROUGH:
        drawn = random.Random(0).sample(drawn, min(MOST, len(drawn)))
    for sample in drawn:
        yield function, (sample.input, *sample.args), sample.kwargs


def check(function: Any, args: tuple, kwargs: dict, compiled: bool = False) -> bool:
    """Compare, and say whether there was something to compare."""
    try:
        theirs = evaluated(function, args, kwargs)
        exact = evaluated(function, *double(args, kwargs))
    except (RuntimeError, TypeError, ValueError):  # what PyTorch refuses
        return False
    ours = single(function, *args, **kwargs)
    if ours.refused:
        return False
    what = f"{function} {[getattr(a, 'shape', a) for a in args]} {kwargs}"
    if compiled:
        ours = ours.compiled()
    compare(ours.results(), theirs[0], exact[0], what)
    floats = [p for p in theirs[0] if p.is_floating_point()]
    if ours.wanted and floats and all(p.requires_grad for p in floats):
        cotangents = [torch.randn_like(p) for p in floats]
        found = ours.gradients(cotangents)
        compare(found, *(pulled_back(*run, cotangents) for run in (theirs, exact)),
                f"gradients of {what}")  # fmt: skip
    return True


def double(args: tuple, kwargs: dict) -> Any:
    def widened(value: Any) -> Any:
        if not value.is_floating_point():
            return value
        return value.detach().double().requires_grad_(value.requires_grad)

    return torch.utils._pytree.tree_map_only(torch.Tensor, widened, (args, kwargs))


def evaluated(function: Any, args: tuple, kwargs: dict) -> tuple[list, list]:
    """What PyTorch gives, and the tensors that it can be differentiated by."""
    function = getattr(torch.Tensor, function) if isinstance(function, str) else function
    result = function(*args, **kwargs)
    leaves = [t for t in torch.utils._pytree.tree_leaves((args, kwargs))
              if isinstance(t, torch.Tensor) and t.requires_grad]  # fmt: skip
    return [result] if isinstance(result, torch.Tensor) else list(result), leaves


def pulled_back(results: list, leaves: list, cotangents: list) -> list[torch.Tensor]:
    floats = [r for r in results if r.is_floating_point()]
    seeds = [c.to(r.dtype) for c, r in zip(cotangents, floats, strict=True)]
    return list(torch.autograd.grad(floats, leaves, seeds, materialize_grads=True))


def compare(ours, theirs, exact, what: str) -> None:
    """By the tolerance rule, on the scale of the largest element; NaN where PyTorch has it."""
    assert len(ours) == len(theirs), what
    for mine, their, right in zip(ours, theirs, exact, strict=True):
        assert (mine.dtype, mine.shape) == (their.dtype, their.shape), what
        if not their.is_floating_point():
            assert torch.equal(mine, their), what
            continue
        mine, their, right = mine.detach(), their.detach(), right.detach()
        finite = their.isfinite()
        assert torch.equal(mine[~finite].nan_to_num(7), their[~finite].nan_to_num(7)), what
        mine, their, right = mine[finite].double(), their[finite].double(), right[finite].double()
        if their.numel():
            error, own = (mine - right).abs().max(), (their - right).abs().max()
            scale = right.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
            limit = allowed(own.item(), scale.item(), str(theirs[0].dtype).removeprefix("torch."))
            assert error <= limit, f"{what}: error {error}, allowed {limit}"
