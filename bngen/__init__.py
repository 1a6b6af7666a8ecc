"""bngen: a compiler that fuses batch normalization into the convolutions around it, for training.

Public names only, each imported from its home when it is first asked for: ``import bngen`` and
``bngen --help`` cost nothing, the language needs NumPy alone, and TVM is loaded by the compiler.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from bngen.dtypes import DTYPES
from bngen.errors import (
    BngenError,
    CallError,
    ProgramError,
    SourceLoc,
    TargetError,
    ToolchainError,
    UsageError,
)
from bngen.version import __version__

_DTYPES = {row.public: row.name for row in DTYPES.values()}
globals().update(_DTYPES)  # bngen.float32, bngen.bool_, ...

_HOMES = {
    "compiler": "build bundle",
    "lang.collectives": "all_reduce",
    "lang.mixed": "autocast",
    "lang.gradients": "grad training_step value_and_grad",
    "lang.loss": (
        "binary_cross_entropy binary_cross_entropy_with_logits cross_entropy kl_div nll_loss"
    ),
    "lang.image_norms": "group_norm instance_norm layer_norm local_response_norm",
    "lang.normalization": "batch_norm bn_normalize bn_stats",
    "lang.adaptive": "Adam AdamW RMSprop adam adamw rmsprop",
    "lang.clipping": "clip_grad_norm clip_grad_value",
    "lang.optim": "SGD latest sgd update",
    "lang.activations": (
        "celu clamp clamp_max clamp_min elu gelu hardshrink hardsigmoid hardswish hardtanh "
        "leaky_relu logsigmoid mish prelu relu relu6 selu silu softplus softshrink softsign "
        "tanhshrink threshold"
    ),
    "lang.pointwise": (
        "abs add addcdiv addcmul bitwise_and bitwise_not bitwise_or bitwise_xor ceil cos detach "
        "div dropout equal erf exp expm1 floor fmod greater greater_equal isfinite isinf isnan "
        "less less_equal log log1p logical_and logical_not logical_or logical_xor maximum minimum "
        "mul neg not_equal pow reciprocal round rsqrt sigmoid sign sin sqrt square stop_gradient "
        "sub tanh where"
    ),
    "lang.program": "Program program trace",
    "lang.places": "flip interpolate pad repeat roll",
    "lang.reductions": (
        "amax amin argmax argmin log_softmax logsumexp max mean min norm normalize prod softmax "
        "std std_mean sum var var_mean vector_norm"
    ),
    "lang.regression": "huber_loss l1_loss mse_loss smooth_l1_loss",
    "lang.shapes": (
        "cat channel_shuffle chunk expand flatten movedim narrow permute pixel_shuffle "
        "pixel_unshuffle reshape split squeeze stack swapaxes swapdims t transpose unbind "
        "unflatten unsqueeze"
    ),
    "lang.state": "buffer constant parameter parameters scope",
    "lang.tensor": "Tensor",
    "lang.windows": (
        "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d conv2d conv_transpose2d linear matmul "
        "max_pool2d"
    ),
    "lang.windows1d": "adaptive_avg_pool1d avg_pool1d conv1d max_pool1d",
    "runtime.bundle": "Bundle",
    "runtime.loading": "load",
    "torch_bridge.backend": "compile",
    "torch_bridge.distributed": "connect",
    "torch_bridge.explain": "explain_model",
    "torch_bridge.sync_layers": "synchronize",
    "torch_bridge.tensors": "to_torch",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_MODULES = {"layers": "bngen.lang.layers", "models": "bngen.models"}

__all__ = [
    "BngenError", "CallError", "ProgramError", "SourceLoc", "TargetError", "ToolchainError",
    "UsageError", "__version__",
]  # fmt: skip
__all__ += [*_DTYPES, *_HOME_OF, *_MODULES]


class UnknownNameError(ProgramError, AttributeError):
    """A name that bngen does not have; an `AttributeError` too, as Python's protocols expect."""


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        found = getattr(_home(name), name)
    elif name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    elif name.startswith("_"):
        raise AttributeError(f"module 'bngen' has no attribute {name!r}")
    else:
        raise _unknown(name)
    globals()[name] = found  # the next look-up does not come here
    return found


def _home(name: str) -> Any:
    try:
        return importlib.import_module(f"bngen.{_HOME_OF[name]}")
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        hint = "pip install torch"
        raise ToolchainError(
            f"bngen.{name} needs PyTorch, which is not installed", hint=hint
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _unknown(name: str) -> UnknownNameError:
    import difflib  # only on the way to an error

    caller = sys._getframe(2)
    near = difflib.get_close_matches(name, __all__, 3)
    return UnknownNameError(
        f"bngen has no {name!r}",
        loc=SourceLoc(caller.f_code.co_filename, caller.f_lineno),
        hint=f"did you mean {' or '.join(near)}?" if near else "see bngen.__all__",
    )
