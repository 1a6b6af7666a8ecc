"""Adam, AdamW and RMSprop inside a program, as ``torch.optim`` defines them.

In: a parameter, its gradient, and what the step before has left. Out: their new values, for
`optim.update`. What depends on the number of the step alone is computed once a step, in double
precision, as PyTorch does it in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bngen.dtypes import EXACT
from bngen.lang.operands import rounded_once, same_float_type
from bngen.lang.optim import Optimizer, check_like, check_scalars
from bngen.lang.pointwise import maximum
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import flag, real


@rounded_once
def adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    max_exp_avg_sq: Tensor | None = None,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of ``torch.optim.Adam`` for one parameter (Kingma and Ba, 2015).

    Args:
        param: the parameter.
        grad: its gradient.
        exp_avg: the mean of gradients as left by the step before, zeros at first.
        exp_avg_sq: that of their squares, zeros at first.
        step: the number of this step, from 1 on: an integer without axes.
        max_exp_avg_sq: the largest ``exp_avg_sq`` so far, zeros at first; needed with ``amsgrad``.
        lr: learning rate, a Python number or a tensor without axes.
        betas: how much of the two means is kept.
        eps: added to the square root.
        weight_decay: factor of an L2 penalty.
        amsgrad: divide by the largest mean of squares so far (Reddi, Kale and Kumar, 2018).
        maximize: go along the gradient, not against it.
        decoupled_weight_decay: shrink the parameter itself, see `adamw`.

    Returns:
        New values of ``param``, ``exp_avg``, ``exp_avg_sq`` and ``max_exp_avg_sq`` (None without
        ``amsgrad``); hand them to `update`.
    """
    same_float_type(
        "adam", ("max_exp_avg_sq",), param=param, grad=grad, exp_avg=exp_avg,
        exp_avg_sq=exp_avg_sq, max_exp_avg_sq=max_exp_avg_sq,
    )  # fmt: skip
    check_like(
        "adam", param, grad=grad, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq,
        max_exp_avg_sq=max_exp_avg_sq,
    )  # fmt: skip
    check_scalars("adam", lr=lr)
    _check_adam("adam", lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay)
    check_tensor("adam", "step", step)
    if step.shape or step.type.element.kind != "int":
        raise error(f"adam: step is {step.type}", "the number of a step is an int64 without axes")
    if amsgrad and max_exp_avg_sq is None:
        raise error("adam: amsgrad needs a max_exp_avg_sq", "declare one with bg.buffer")
    if maximize:
        grad = -grad
    if weight_decay and decoupled_weight_decay:
        param = param * (1.0 - lr * weight_decay)
    elif weight_decay:
        grad = grad + param * weight_decay
    (first, second), number = betas, step.to(EXACT)
    # Each mean is read once, so that the new one may lie where it did.
    exp_avg = exp_avg * first + grad * (1.0 - first)
    exp_avg_sq = exp_avg_sq * second + grad * grad * (1.0 - second)
    largest = maximum(max_exp_avg_sq, exp_avg_sq) if amsgrad else None
    rate = (lr.to(EXACT) if isinstance(lr, Tensor) else lr) / (1.0 - first**number)
    scale = (1.0 - second**number).rsqrt()
    size = (exp_avg_sq if largest is None else largest).sqrt() * scale + eps
    return param - exp_avg / size * rate, exp_avg, exp_avg_sq, largest


def adamw(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    max_exp_avg_sq: Tensor | None = None,
    lr: float | Tensor = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of ``torch.optim.AdamW``: `adam` that shrinks the parameter by itself.

    Arguments and results are `adam`'s, but for ``weight_decay``: the parameter loses that share of
    it times ``lr`` (Loshchilov and Hutter, 2019).
    """
    return adam(
        param, grad, exp_avg, exp_avg_sq, step, max_exp_avg_sq, lr, betas, eps, weight_decay,
        amsgrad, maximize=maximize, decoupled_weight_decay=True,
    )  # fmt: skip


@rounded_once
def rmsprop(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None = None,
    grad_avg: Tensor | None = None,
    lr: float | Tensor = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One step of ``torch.optim.RMSprop`` for one parameter.

    Args:
        param: the parameter.
        grad: its gradient.
        square_avg: the mean of squared gradients as left by the step before, zeros at first.
        momentum_buffer: zeros at first; needed with ``momentum``.
        grad_avg: the mean of gradients, zeros at first; needed with ``centered``.
        lr: learning rate, a Python number or a tensor without axes.
        alpha: how much of the means is kept.
        eps: added to the square root.
        weight_decay: factor of an L2 penalty.
        momentum: how much of the buffer is kept.
        centered: divide by the standard deviation of gradients.
        maximize: go along the gradient, not against it.

    Returns:
        New values of ``param``, ``square_avg``, ``momentum_buffer`` (None without momentum) and
        ``grad_avg`` (None unless centered); hand them to `update`.
    """
    kept = {"momentum_buffer": momentum_buffer, "grad_avg": grad_avg}
    same_float_type("rmsprop", (*kept,), param=param, grad=grad, square_avg=square_avg, **kept)
    check_like("rmsprop", param, grad=grad, square_avg=square_avg, **kept)
    check_scalars("rmsprop", lr=lr)
    _check_rmsprop("rmsprop", lr, alpha, eps, weight_decay, momentum, centered, maximize)
    if momentum and momentum_buffer is None:
        raise error("rmsprop: momentum needs a momentum_buffer", "declare one with bg.buffer")
    if centered and grad_avg is None:
        raise error("rmsprop: centered needs a grad_avg", "declare one with bg.buffer")
    if maximize:
        grad = -grad
    if weight_decay:
        grad = grad + param * weight_decay
    square_avg = square_avg * alpha + grad * grad * (1.0 - alpha)
    mean = grad_avg * alpha + grad * (1.0 - alpha) if centered else None
    size = (square_avg if mean is None else square_avg - mean * mean).sqrt() + eps
    if not momentum:
        return param - grad / size * lr, square_avg, None, mean
    buffer = momentum_buffer * momentum + grad / size
    return param - buffer * lr, square_avg, buffer, mean


def _check_adam(label, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled) -> None:
    """What ``torch.optim.Adam`` checks."""
    if not isinstance(lr, Tensor):
        real(label, "lr", lr, 0)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise error(f"{label}: betas must be two numbers, got {betas!r}")
    for beta in betas:
        if real(label, "betas", beta, 0, 1) == 1:
            raise error(f"{label}: betas must be less than 1")
    real(label, "eps", eps, 0)
    real(label, "weight_decay", weight_decay, 0)
    flag(label, "amsgrad", amsgrad)
    flag(label, "maximize", maximize)
    flag(label, "decoupled_weight_decay", decoupled)


def _check_rmsprop(label: str, lr, alpha, eps, weight_decay, momentum, centered, maximize) -> None:
    """What ``torch.optim.RMSprop`` checks."""
    if not isinstance(lr, Tensor):
        real(label, "lr", lr, 0)
    for what, number in (
        ("alpha", alpha), ("eps", eps), ("weight_decay", weight_decay), ("momentum", momentum),
    ):  # fmt: skip
        real(label, what, number, 0)
    flag(label, "centered", centered)
    flag(label, "maximize", maximize)


@dataclass(frozen=True)
class Adam(Optimizer):
    """``torch.optim.Adam``, for `training_step`.

    Attributes:
        lr: learning rate; None makes it an argument of the step, so that schedules work.
        betas: how much is kept of the means of gradients and of their squares.
        eps: added to the square root.
        weight_decay: factor of an L2 penalty.
        amsgrad: divide by the largest mean of squares so far.
        maximize: go along the gradient, not against it.
        decoupled_weight_decay: shrink parameters by themselves, see `AdamW`.
    """

    lr: float | None = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False
    decoupled_weight_decay: bool = False

    counts_steps = True

    def __post_init__(self) -> None:
        lr = 0 if self.lr is None else self.lr
        _check_adam(
            type(self).__name__, lr, self.betas, self.eps, self.weight_decay, self.amsgrad,
            self.maximize, self.decoupled_weight_decay,
        )  # fmt: skip

    @property
    def keeps(self) -> tuple[str, ...]:
        """Two means, with ``amsgrad`` the largest of one."""
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def step(  # noqa: D102
        self,
        param: Tensor,
        grad: Tensor,
        kept: Mapping[str, Tensor],
        lr: float | Tensor,
        taken: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        new, *means = adam(
            param, grad, kept["exp_avg"], kept["exp_avg_sq"], taken + 1,
            kept.get("max_exp_avg_sq"), lr, self.betas, self.eps, self.weight_decay, self.amsgrad,
            maximize=self.maximize, decoupled_weight_decay=self.decoupled_weight_decay,
        )  # fmt: skip
        return new, dict(zip(self.keeps, means, strict=False))


@dataclass(frozen=True)
class AdamW(Adam):
    """``torch.optim.AdamW``, for `training_step`: `Adam` that shrinks parameters by themselves.

    Attributes:
        weight_decay: the share of a parameter that is lost, times ``lr``.
    """

    weight_decay: float = 1e-2
    decoupled_weight_decay: bool = field(default=True, init=False)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """``torch.optim.RMSprop``, for `training_step`.

    Attributes:
        lr: learning rate; None makes it an argument of the step, so that schedules work.
        alpha: how much of the means is kept.
        eps: added to the square root.
        weight_decay: factor of an L2 penalty.
        momentum: how much of the momentum buffer is kept.
        centered: divide by the standard deviation of gradients.
        maximize: go along the gradient, not against it.
    """

    lr: float | None = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    counts_steps = False

    def __post_init__(self) -> None:
        lr = 0 if self.lr is None else self.lr
        _check_rmsprop(
            "RMSprop", lr, self.alpha, self.eps, self.weight_decay, self.momentum, self.centered,
            self.maximize,
        )  # fmt: skip

    @property
    def keeps(self) -> tuple[str, ...]:
        """The mean of squares; a buffer with momentum, the mean of gradients if centered."""
        more = {"momentum_buffer": self.momentum != 0, "grad_avg": self.centered}
        return ("square_avg", *(name for name, kept in more.items() if kept))

    def step(  # noqa: D102
        self,
        param: Tensor,
        grad: Tensor,
        kept: Mapping[str, Tensor],
        lr: float | Tensor,
        taken: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        new, square, buffer, mean = rmsprop(
            param, grad, kept["square_avg"], kept.get("momentum_buffer"), kept.get("grad_avg"), lr,
            self.alpha, self.eps, self.weight_decay, self.momentum, self.centered,
            maximize=self.maximize,
        )  # fmt: skip
        made = {"square_avg": square, "momentum_buffer": buffer, "grad_avg": mean}
        return new, {name: made[name] for name in self.keeps}
