"""bngen: a compiler that fuses batch normalization into the convolutions around it, for training.

The language (`program`, `Tensor`, the op functions) is here and needs NumPy alone; what needs the
compiler (`build`, `grad`, `value_and_grad`) is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from bngen.errors import (
    BngenError,
    CallError,
    ProgramError,
    SourceLoc,
    TargetError,
    ToolchainError,
    UsageError,
)
from bngen.lang import layers
from bngen.lang.loss import cross_entropy
from bngen.lang.normalization import batch_norm, bn_normalize, bn_stats
from bngen.lang.optim import sgd, update
from bngen.lang.pointwise import (
    abs,
    add,
    detach,
    div,
    dropout,
    equal,
    exp,
    greater,
    greater_equal,
    hardtanh,
    leaky_relu,
    less,
    less_equal,
    log,
    maximum,
    minimum,
    mul,
    neg,
    not_equal,
    pow,
    relu,
    relu6,
    rsqrt,
    sigmoid,
    silu,
    sqrt,
    stop_gradient,
    sub,
    tanh,
    where,
)
from bngen.lang.program import Program, program, trace
from bngen.lang.reductions import amax, log_softmax, max, mean, softmax, sum
from bngen.lang.shapes import cat, flatten, reshape
from bngen.lang.state import buffer, parameter, parameters, scope
from bngen.lang.tensor import Tensor
from bngen.lang.windows import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    linear,
    matmul,
    max_pool2d,
)

__version__ = "0.1.0"

float32, float64 = "float32", "float64"
int32, int64, uint8, bool_ = "int32", "int64", "uint8", "bool"

_FROM_COMPILER = ("build", "grad", "value_and_grad")
_ROOMS = ("models",)

__all__ = [
    "BngenError", "CallError", "Program", "ProgramError", "SourceLoc", "TargetError", "Tensor",
    "ToolchainError", "UsageError", "abs", "adaptive_avg_pool2d", "add", "amax", "avg_pool2d",
    "batch_norm", "bn_normalize", "bn_stats", "bool_", "buffer", "build", "cat", "conv2d",
    "cross_entropy", "detach", "div", "dropout", "equal", "exp", "flatten", "float32", "float64",
    "grad", "greater", "greater_equal", "hardtanh", "int32", "int64", "layers", "leaky_relu",
    "less", "less_equal", "linear", "log", "log_softmax", "matmul", "max", "max_pool2d", "maximum",
    "mean", "minimum", "models", "mul", "neg", "not_equal", "parameter", "parameters", "pow",
    "program", "relu", "relu6", "reshape", "rsqrt", "scope", "sgd", "sigmoid", "silu", "softmax",
    "sqrt", "stop_gradient", "sub", "sum", "tanh", "trace", "uint8", "update", "value_and_grad",
    "where",
]  # fmt: skip


class UnknownNameError(ProgramError, AttributeError):
    """A name that bngen does not have; an `AttributeError` too, as Python's protocols expect."""


def __getattr__(name: str) -> Any:
    if name in _FROM_COMPILER:
        return getattr(importlib.import_module("bngen.compiler"), name)
    if name in _ROOMS:
        return importlib.import_module(f"bngen.{name}")
    if name.startswith("__"):
        raise AttributeError(name)
    import difflib  # only on the way to an error

    caller = sys._getframe(1)
    near = difflib.get_close_matches(name, __all__, 3)
    raise UnknownNameError(
        f"bngen has no {name!r}",
        loc=SourceLoc(caller.f_code.co_filename, caller.f_lineno),
        hint=f"did you mean {' or '.join(near)}?" if near else "see bngen.__all__",
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
