"""The PyTorch table: no op without a row, and no call of PyTorch that bngen answers otherwise.

What rows mean is tested with the ops themselves (`tests.ir.test_ops`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import get_testing_overrides

import bngen as bg
from bngen.ir.interp import run
from bngen.ir.ops import OPS
from bngen.torch_bridge.ops import COMPOSED, SPELLINGS, TORCH_OPS, Spelling, spelling_of
from tests.oracle import assert_few_ulps

SIGNATURES = get_testing_overrides()
"""PyTorch's own list of what its functions take: built-in functions have no signature."""


LISTED_OTHERWISE = {
    "where", "isinf", "isfinite", "logsumexp", "permute", "swapaxes", "swapdims", "squeeze",
    "unsqueeze", "repeat",
}  # fmt: skip
"""Whose parameters have other names there than PyTorch takes."""


def language(spelling: Spelling) -> Callable[..., Any]:
    return reduce(getattr, spelling.language.split("."), bg)


def test_every_op_has_a_row():
    assert TORCH_OPS.keys() == OPS.keys()
    for name, row in TORCH_OPS.items():
        assert row.op == name
        assert bool(row.spellings) != bool(row.why_not), f"{name}: spelled, or a reason why not"


def test_no_call_is_answered_twice():
    for kind in ("functions", "methods", "modules"):
        calls = [c for spelling in SPELLINGS for c in getattr(spelling, kind)]
        known = [c if isinstance(c, str) else id(c) for c in calls]
        assert len(known) == len(set(known))
    for spelling in SPELLINGS:
        for called in (*spelling.functions, *spelling.methods, *spelling.modules):
            assert spelling_of(called) is spelling
    assert spelling_of(torch.svd) is spelling_of("svd") is spelling_of(torch.nn.GRU) is None


OTHERS = {
    "bn_normalize": "a half of batch_norm, by bngen's own name",
    "bn_stats": "a half of batch_norm, by bngen's own name",
    "stop_gradient": "detach, by bngen's own name",
    "dropout": "PyTorch draws other numbers, from a generator",
    "max": "PyTorch's gives indices, too",
    "min": "PyTorch's gives indices, too",
}
"""Functions of the language that no call of PyTorch becomes, and why."""


def test_every_function_of_the_language_is_in_the_table():
    rooms = (
        "pointwise", "activations", "reductions", "shapes", "places", "windows", "windows1d",
        "normalization", "image_norms", "loss", "regression",
    )  # fmt: skip
    named = {name for room in rooms for name in bg._HOMES[f"lang.{room}"].split()}
    spelled = {s.language for s in SPELLINGS if "." not in s.language}
    assert spelled.isdisjoint(OTHERS)
    assert spelled | OTHERS.keys() == named


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda s: s.language)
def test_parameters_are_those_of_pytorch(spelling):
    """Each is the language's, by the same name, or may have one value only."""
    ours = inspect.signature(language(spelling)).parameters
    assert not spelling.only.keys() & ours.keys()
    methods = [getattr(torch.Tensor, name) for name in spelling.methods]
    for function in (*spelling.functions, *methods):
        # Some are listed by other names.
        other = LISTED_OTHERWISE & {spelling.language, function.__name__}
        if function not in SIGNATURES or other:
            continue
        theirs = inspect.signature(SIGNATURES[function]).parameters
        unknown = theirs.keys() - ours.keys() - spelling.only.keys() - {"self"}
        assert not unknown, f"{function} takes {unknown}"


# --- the same numbers ---------------------------------------------------------------------------

_PAIR = (2, 3, 4, 4), (3, 1, 4)
SAMPLES: Mapping[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "fmod", "maximum", "minimum", "pow", "greater",
         "greater_equal", "less", "less_equal", "equal", "not_equal", "logical_and", "logical_or",
         "logical_xor"),
        (_PAIR, {}),
    ),
    "prelu": (((2, 3), (1,)), {}),
    "clamp": (((2, 30),), {"min": 0.8, "max": 1.5}),
    "clamp_min": (((2, 30),), {"min": 0.8}),
    "clamp_max": (((2, 30),), {"max": 1.5}),
    "elu": (((2, 30),), {"alpha": 1.5}),
    "celu": (((2, 30),), {"alpha": 1.5}),
    "gelu": (((2, 30),), {"approximate": "tanh"}),
    "softplus": (((2, 30),), {"beta": 2.0, "threshold": 3.0}),
    "hardshrink": (((2, 30),), {"lambd": 1.0}),
    "softshrink": (((2, 30),), {"lambd": 1.0}),
    "threshold": (((2, 30),), {"threshold": 1.0, "value": 0.25}),
    "leaky_relu": (((2, 3),), {"negative_slope": 0.2}),
    "hardtanh": (((2, 30),), {"min_val": 0.6, "max_val": 1.5}),
    "sum": (((2, 3, 4),), {"dim": (0, 2), "keepdim": True}),
    "mean": (((2, 3, 4),), {"dim": 1}),
    "amax": (((2, 3, 4),), {"dim": (1,)}),
    "amin": (((2, 3, 4),), {"dim": (1,)}),
    "argmax": (((2, 3, 4),), {"dim": 1, "keepdim": True}),
    "argmin": (((2, 3, 4),), {"dim": -1}),
    "var": (((2, 3, 4),), {"dim": (0, 2), "correction": 0, "keepdim": True}),
    "std": (((2, 3, 4),), {"dim": (0, 2)}),
    "norm": (((2, 3, 4),), {"dim": 1, "keepdim": True}),
    "vector_norm": (((2, 3, 4),), {"dim": (0, 1), "ord": 1}),
    "normalize": (((2, 3, 4),), {"dim": 2}),
    "logsumexp": (((2, 3, 4),), {"dim": (0, 2)}),
    "conv2d": (
        ((2, 4, 7, 6), (6, 2, 3, 3), (6,)),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
    ),
    "addcmul": (((2, 3), (3,), (2, 1)), {"value": 0.5}),
    "addcdiv": (((2, 3), (3,), (2, 1)), {"value": 0.5}),
    "conv1d": (
        ((2, 4, 7), (6, 2, 3), (6,)), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    ),
    "max_pool1d": (((2, 3, 7),), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    "avg_pool1d": (
        ((2, 3, 7),),
        {"kernel_size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    "adaptive_avg_pool1d": (((2, 3, 7),), {"output_size": 3}),
    "matmul": (((3, 4), (4, 5)), {}),
    "linear": (((2, 3, 4), (5, 4), (5,)), {}),
    "max_pool2d": (
        ((2, 3, 7, 6),),
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": True},
    ),
    "avg_pool2d": (
        ((2, 3, 7, 6),),
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True,
         "count_include_pad": False},
    ),
    "adaptive_avg_pool2d": (((2, 3, 7, 6),), {"output_size": (3, 1)}),
    "batch_norm": (
        ((4, 3, 5, 5), (3,), (3,), (3,), (3,)), {"training": True, "momentum": 0.3, "eps": 1e-3},
    ),
    "softmax": (((2, 3, 4),), {"dim": 1}),
    "log_softmax": (((2, 3, 4),), {"dim": 1}),
    "reshape": (((2, 3, 4),), {"shape": (6, 4)}),
    "flatten": (((2, 3, 4),), {"start_dim": 1}),
    "unflatten": (((2, 6, 4),), {"dim": 1, "sizes": (2, -1)}),
    "squeeze": (((2, 1, 4, 1),), {"dim": (1, 2)}),
    "unsqueeze": (((2, 3),), {"dim": -1}),
    "narrow": (((2, 6),), {"dim": 1, "start": 2, "length": 3}),
    "expand": (((3, 1),), {"size": (2, -1, 4)}),
    "repeat": (((3, 1),), {"repeats": (2, 2, 4)}),
    "pad": (((2, 3, 5),), {"pad": (1, 2, -1, 1), "value": 2.5}),
    "flip": (((2, 3, 4),), {"dims": (0, 2)}),
    "roll": (((2, 3, 4),), {"shifts": (-1, 6), "dims": (0, 2)}),
    "permute": (((2, 3, 4),), {"dims": (2, 0, 1)}),
    "transpose": (((2, 3, 4),), {"dim0": 0, "dim1": -1}),
    "swapaxes": (((2, 3, 4),), {"axis0": 0, "axis1": -1}),
    "swapdims": (((2, 3, 4),), {"dim0": 0, "dim1": -1}),
    "movedim": (((2, 3, 4),), {"source": (0, 1), "destination": (2, 0)}),
    "channel_shuffle": (((2, 6, 3, 3),), {"groups": 2}),
    "pixel_shuffle": (((2, 12, 3, 4),), {"upscale_factor": 2}),
    "pixel_unshuffle": (((2, 3, 4, 6),), {"downscale_factor": 2}),
    "interpolate": (((2, 3, 4, 5),), {"scale_factor": (2.0, 1.5)}),
    "conv_transpose2d": (
        ((2, 4, 5, 4), (4, 3, 3, 3), (6,)),
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2, "dilation": (1, 2)},
    ),
    "adaptive_max_pool2d": (((2, 3, 7, 6),), {"output_size": (3, 1)}),
    "group_norm": (((2, 6, 3, 3),), {"num_groups": 2}),
    "layer_norm": (((2, 3, 4),), {"normalized_shape": (3, 4), "eps": 0.1}),
    "instance_norm": (((2, 3, 4, 4), (3,), (3,), (3,), (3,)), {"momentum": 0.3}),
    "local_response_norm": (((2, 5, 3, 3),), {"size": 3, "alpha": 0.5}),
}  # fmt: skip
"""Shapes of tensors, all positive, and other arguments; for others one tensor alone."""
LOSSES = {
    "cross_entropy", "nll_loss", "kl_div", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
}  # fmt: skip
BITS = {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"}
SPECIAL = {
    "where", "cat", "stack", "split", "chunk", "unbind", "Tensor.to", "Tensor.float",
    "Tensor.__getitem__", "var_mean", "std_mean",
}  # fmt: skip
SPECIAL |= LOSSES | BITS
"""Their arguments are not tensors and options: see below."""
PLAIN = [s for s in SPELLINGS if s.language not in SPECIAL]


def arrays_for(spelling: Spelling) -> tuple[list[np.ndarray], dict[str, Any]]:
    shapes, options = SAMPLES.get(spelling.language, (((2, 3),), {}))
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 2, s) for s in shapes], options


def ours(spelling: Spelling, arrays, options, call=None) -> tuple[np.ndarray, set[str]]:
    """What the language's function gives, and the ops it becomes."""
    fn = call or (lambda *xs: language(spelling)(*xs, **options))
    graph = bg.trace(fn, *(bg.Tensor(a.shape, a.dtype) for a in arrays)).graph
    args = dict(zip((i.name for i in graph.inputs), arrays, strict=True))
    return run(graph, args).outputs[0], {node.op for node in graph.nodes}


def tensors(arrays) -> list[torch.Tensor]:
    return [torch.tensor(a) for a in arrays]


@pytest.mark.parametrize("spelling", PLAIN, ids=lambda s: s.language)
def test_calls_of_functions_and_methods(spelling):
    arrays, options = arrays_for(spelling)
    found, _ = ours(spelling, arrays, options)
    for function in spelling.functions:
        assert_few_ulps(found, function(*tensors(arrays), **options), str(function))
    for method in spelling.methods:
        x, *rest = tensors(arrays)
        words = options.values() if method == "view" else []  # which has no parameter's name
        theirs = getattr(x, method)(*rest, *words, **({} if words else options))
        assert_few_ulps(found, theirs, method)


@pytest.mark.parametrize("spelling", [s for s in PLAIN if s.modules], ids=lambda s: s.language)
def test_calls_of_modules(spelling):
    """A module is its function, with the parameters that are attributes of the module."""
    (x, *_), options = arrays_for(spelling)
    names = inspect.signature(language(spelling)).parameters
    for kind in spelling.modules:
        wanted = {"training"} | ({"groups"} if "groups" in options else set())
        made = {k: v for k, v in options.items() if k not in wanted}
        sizes = {
            "Linear": (4, 5), "Conv1d": (4, 6, 3), "Conv2d": (4, 6, 3),
            "ConvTranspose2d": (4, 6, 3),
            "BatchNorm1d": (3,), "BatchNorm2d": (3,), "BatchNorm3d": (3,),
        }.get(kind.__name__, ())  # fmt: skip
        made |= {"groups": 2} if "groups" in options else {}
        made |= {"num_channels": 6} if kind is torch.nn.GroupNorm else {}
        module, data = kind(*sizes, **made).double(), x
        data = x[:, :, 0] if kind is torch.nn.BatchNorm1d else x
        data = x[..., None] if kind is torch.nn.BatchNorm3d else data
        held = {n: getattr(module, n) for n in names if hasattr(module, n)}
        given = {n: v.detach().numpy() for n, v in held.items() if isinstance(v, torch.Tensor)}
        rest = {n: v for n, v in held.items() if n not in given}
        for name in spelling.only.keys() & vars(module).keys():
            assert not spelling.refusal({name: getattr(module, name)})

        def call(x, *xs, rest=rest, given=given):
            return language(spelling)(x, **dict(zip(given, xs, strict=True)), **rest)

        # Copies: the layer updates its statistics.
        copied = [np.array(a) for a in (data, *given.values())]
        found, _ = ours(spelling, copied, {}, call)
        assert_few_ulps(found, module(torch.tensor(data)).detach(), kind.__name__)


ROWS = [(row.op, s) for row in TORCH_OPS.values() for s in row.spellings if s in PLAIN]


@pytest.mark.parametrize(("op", "spelling"), ROWS, ids=[f"{op}-{s.language}" for op, s in ROWS])
def test_a_spelling_becomes_the_op_of_its_row(op, spelling):
    arrays, options = arrays_for(spelling)
    assert op in ours(spelling, arrays, options)[1]


def test_what_is_composed_is_no_single_op():
    for spelling in COMPOSED:
        if spelling not in PLAIN:
            continue
        arrays, options = arrays_for(spelling)
        graph_ops = ours(spelling, arrays, options)[1]
        assert graph_ops != {spelling.language}, spelling.language


def test_arguments_of_other_kinds():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4))
    found, ops = ours(None, [a, b], {}, lambda x, y: bg.cat([bg.where(x > y, x, y), x[:, 1:3]], 1))
    x, y = tensors([a, b])
    for joined in spelling_of(torch.cat).functions:
        assert_few_ulps(found, joined([torch.where(x > y, x, y), x[:, 1:3]], 1))
    assert ops == {"greater", "where", "slice", "cat"}
    found, ops = ours(None, [a], {}, lambda x: x.to("int32").float())
    assert_few_ulps(found, x.to(torch.int32).float())
    assert ops == {"cast"}


def test_bits_and_pairs():
    a, b = np.random.default_rng(0).integers(0, 2, (2, 3, 4)) > 0
    for name in sorted(BITS):
        (spelling,) = (s for s in COMPOSED if s.language == name)
        operands = [a] if name == "bitwise_not" else [a, b]
        found, _ = ours(spelling, operands, {})
        for theirs in spelling.functions:
            np.testing.assert_array_equal(found, theirs(*tensors(operands)))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for name in ("var_mean", "std_mean"):
        (spelling,) = (s for s in COMPOSED if s.language == name)
        for i in (0, 1):
            found, _ = ours(None, [x], {}, lambda t, s=spelling, i=i: language(s)(t, dim=1)[i])
            assert_few_ulps(found, getattr(torch, name)(torch.tensor(x), dim=1)[i], least=1.0)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses(name):
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((4, 5)), rng.uniform(0, 1, (4, 5))
    options = {"reduction": "sum"}
    if name == "binary_cross_entropy":
        logits = rng.uniform(0, 1, (4, 5))
        logits[0, :2] = 0, 1
    if name in ("cross_entropy", "nll_loss"):
        target, options["ignore_index"] = np.array([0, 1, 3, 2]), 1
    if name == "cross_entropy":
        options["label_smoothing"] = 0.1
    (spelling,) = (s for s in SPELLINGS if s.language == name)
    found, _ = ours(spelling, [logits, target], options)
    for theirs in (
        *(lambda x, t, f=f: f(x, t, **options) for f in spelling.functions),
        *(m(**options) for m in spelling.modules),
    ):
        assert_few_ulps(found, theirs(*tensors([logits, target])))
        for module in spelling.modules:
            for parameter in spelling.only.keys() & vars(module()).keys():
                assert not spelling.refusal({parameter: getattr(module(), parameter)})


# --- what is refused ----------------------------------------------------------------------------


REFUSED = [
    (torch.round, {"decimals": 2}, "round: decimals is 2, and bngen has it as 0 alone"),
    (torch.div, {"rounding_mode": "floor"}, "div: rounding_mode is 'floor'"),
    (torch.nn.ReLU, {"inplace": True}, "relu: inplace is True, and bngen has it as False"),
    (torch.nn.MaxPool2d, {"return_indices": True}, "max_pool2d: return_indices is True"),
    (torch.nn.Conv2d, {"padding_mode": "reflect"}, "conv2d: padding_mode is 'reflect'"),
    ("sum", {"dtype": torch.float64}, "sum: dtype is torch.float64"),
    (torch.round, {"decimals": 0, "out": None}, ""),
    (torch.round, {"decimals": False}, "round: decimals is False"),
]


# The text of a built-in function holds its address, which is another in each process.
@pytest.mark.parametrize(
    ("called", "arguments", "reason"), REFUSED, ids=[reason or "taken" for *_, reason in REFUSED]
)
def test_a_parameter_that_bngen_lacks(called, arguments, reason):
    refusal = spelling_of(called).refusal({"input": torch.ones(2), **arguments})
    assert refusal.startswith(reason) and bool(refusal) == bool(reason)
