"""Updates of a program's inputs, and stochastic gradient descent; see `adaptive` for more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bngen.lang.operands import rounded_once, same_float_type
from bngen.lang.pointwise import where
from bngen.lang.tensor import Tensor
from bngen.lang.trace import current_trace, error
from bngen.lang.traced import check_tensor, wrap
from bngen.lang.types import flag, real


def update(input: Tensor, value: Tensor) -> None:
    """Let an argument, parameter or buffer hold ``value`` once the program has ended.

    Until then the program goes on reading the old value; `latest` gives the new one. Of several
    updates the last one holds.

    Raises:
        ProgramError: ``input`` is computed by the program, or has another shape or dtype than
            ``value``.
    """
    trace = current_trace("update")
    check_tensor("update", "input", input)
    check_tensor("update", "value", value)
    trace.set_update("update", input.value, value.value)


def latest(input: Tensor) -> Tensor:
    """What an argument, parameter or buffer is going to hold, by the updates made so far."""
    check_tensor("latest", "input", input)
    trace = current_trace("latest")
    return wrap(trace, trace.latest(input.value))


@rounded_once
def sgd(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    lr: float | Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float | Tensor = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """One step of ``torch.optim.SGD`` for one parameter.

    PyTorch starts the momentum buffer with the first gradient. A buffer that starts with zeros
    does the same as long as ``dampening`` is 0; with dampening, PyTorch's first step alone is
    undampened, and here it is dampened like all others: start the buffer with
    ``dampening / momentum`` times the first gradient to match.

    Args:
        param: the parameter.
        grad: its gradient.
        momentum_buffer: as left by the step before, zeros at first; needed with ``momentum``.
        lr: learning rate, a Python number or a tensor without axes.
        momentum: how much of the buffer is kept.
        dampening: what the gradient loses on its way into the buffer; a number or a tensor
            without axes.
        weight_decay: factor of an L2 penalty.
        nesterov: look ahead along the momentum.
        maximize: go along the gradient, not against it.

    Returns:
        New values of ``param`` and ``momentum_buffer`` (``None`` without momentum); hand them to
        `update`.
    """
    same_float_type(
        "sgd", ("momentum_buffer",), param=param, grad=grad, momentum_buffer=momentum_buffer
    )
    _check(param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov)
    if flag("sgd", "maximize", maximize):
        grad = -grad
    if weight_decay:
        grad = grad + param * weight_decay
    if not momentum:
        return param - grad * lr, None
    dampened = isinstance(dampening, Tensor) or dampening != 0
    buffer = momentum_buffer * momentum + (grad * (1.0 - dampening) if dampened else grad)
    step = grad + buffer * momentum if nesterov else buffer
    return param - step * lr, buffer


def _check(param, grad, buffer, lr, momentum, dampening, weight_decay, nesterov) -> None:
    check_like("sgd", param, grad=grad, momentum_buffer=buffer)
    check_scalars("sgd", lr=lr, dampening=dampening)
    _check_numbers("sgd", lr, momentum, dampening, weight_decay, nesterov)
    if momentum and buffer is None:
        raise error("sgd: momentum needs a momentum_buffer", "declare one with bg.buffer")


def check_like(label: str, param: Tensor, **others: Tensor | None) -> None:
    """Raise unless what is kept for a parameter has its shape."""
    for name, x in others.items():
        if x is not None and x.shape != param.shape:
            raise error(f"{label}: {name} is {x.type} for a parameter {param.type}")


def check_scalars(label: str, **settings: float | Tensor) -> None:
    """Raise for a setting that is a tensor with axes, or of no floating-point type."""
    for name, x in settings.items():
        if not isinstance(x, Tensor):
            continue
        check_tensor(label, name, x)
        if x.shape or not x.type.is_float:
            what = "a learning rate" if name == "lr" else name
            raise error(f"{label}: {name} is {x.type}", f"{what} is a float without axes")


def _check_numbers(label: str, lr, momentum, dampening, weight_decay, nesterov) -> None:
    """What ``torch.optim.SGD`` checks; tensors are another matter."""
    if not isinstance(lr, Tensor):
        real(label, "lr", lr, 0)
    real(label, "momentum", momentum, 0)
    if not isinstance(dampening, Tensor):
        real(label, "dampening", dampening)
    real(label, "weight_decay", weight_decay, 0)
    if nesterov and (not momentum or isinstance(dampening, Tensor) or dampening):
        raise error(f"{label}: nesterov needs a momentum and no dampening")


class Optimizer:
    """How `training_step` moves parameters; `SGD`, `Adam`, `AdamW` and `RMSprop` are ones.

    Attributes:
        lr: learning rate; None makes it an argument of the step, so that schedules work.
    """

    lr: float | None

    @property
    def keeps(self) -> tuple[str, ...]:
        """What is kept of each parameter, by ``torch.optim``'s names; zeros at first."""
        raise NotImplementedError

    @property
    def counts_steps(self) -> bool:
        """Whether a step depends on how many were taken before."""
        raise NotImplementedError

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        kept: Mapping[str, Tensor],
        lr: float | Tensor,
        taken: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """New values of a parameter and of what is kept of it.

        Args:
            param: the parameter.
            grad: its gradient.
            kept: by the names of `keeps`.
            lr: learning rate.
            taken: how many steps were taken before, an integer, where `counts_steps`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """``torch.optim.SGD``, for `training_step`.

    Attributes:
        lr: learning rate; None makes it an argument of the step, so that schedules work.
        momentum: how much of the momentum buffer is kept.
        dampening: what the gradient loses on its way into the buffer, but for the first step.
        weight_decay: factor of an L2 penalty.
        nesterov: look ahead along the momentum.
        maximize: go along the gradient, not against it.
    """

    lr: float | None = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        lr = 0 if self.lr is None else self.lr
        numbers = (self.momentum, self.dampening, self.weight_decay, self.nesterov)
        _check_numbers("SGD", lr, *numbers)
        flag("SGD", "maximize", self.maximize)

    @property
    def keeps(self) -> tuple[str, ...]:
        """A buffer, with momentum."""
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def counts_steps(self) -> bool:
        """Whether the first step differs from the others: it alone is not dampened."""
        return self.momentum != 0 and self.dampening != 0

    def step(  # noqa: D102
        self,
        param: Tensor,
        grad: Tensor,
        kept: Mapping[str, Tensor],
        lr: float | Tensor,
        taken: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        dampening: float | Tensor = self.dampening
        if self.counts_steps:
            dampening = where(taken == 0, 0.0, self.dampening)
        new, buffer = sgd(
            param, grad, kept.get("momentum_buffer"), lr, self.momentum, dampening,
            self.weight_decay, self.nesterov, maximize=self.maximize,
        )  # fmt: skip
        return new, {} if buffer is None else {"momentum_buffer": buffer}
