"""Stochastic gradient descent inside a program, and updates of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from bngen.lang.pointwise import where
from bngen.lang.tensor import Tensor, check_tensor, same_float_type
from bngen.lang.trace import current_trace, error
from bngen.lang.types import real


def update(input: Tensor, value: Tensor) -> None:
    """Let an argument, parameter or buffer hold ``value`` once the program has ended.

    Until then the program goes on reading the old value.

    Raises:
        ProgramError: ``input`` is computed by the program, has an update already, or has
            another shape or dtype than ``value``.
    """
    trace = current_trace("update")
    check_tensor("update", "input", input)
    check_tensor("update", "value", value)
    if trace.has_update(input.value):
        raise error(f"update: {input.name!r} is updated already", "combine the two updates")
    trace.set_update("update", input.value, value.value)


def sgd(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    lr: float | Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float | Tensor = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
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

    Returns:
        New values of ``param`` and ``momentum_buffer`` (``None`` without momentum); hand them to
        `update`.
    """
    same_float_type(
        "sgd", ("momentum_buffer",), param=param, grad=grad, momentum_buffer=momentum_buffer
    )
    _check(param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov)
    if weight_decay:
        grad = grad + param * weight_decay
    if not momentum:
        return param - grad * lr, None
    dampened = isinstance(dampening, Tensor) or dampening != 0
    buffer = momentum_buffer * momentum + (grad * (1.0 - dampening) if dampened else grad)
    step = grad + buffer * momentum if nesterov else buffer
    return param - step * lr, buffer


def _check(param, grad, buffer, lr, momentum, dampening, weight_decay, nesterov) -> None:
    for name, x in (("grad", grad), ("momentum_buffer", buffer)):
        if x is not None and x.shape != param.shape:
            raise error(f"sgd: {name} is {x.type} for a parameter {param.type}")
    for name, x in (("lr", lr), ("dampening", dampening)):
        if isinstance(x, Tensor):
            _check_scalar(name, x)
    _check_numbers("sgd", lr, momentum, dampening, weight_decay, nesterov)
    if momentum and buffer is None:
        raise error("sgd: momentum needs a momentum_buffer", "declare one with bg.buffer")


def _check_scalar(name: str, x: Tensor) -> None:
    check_tensor("sgd", name, x)
    if x.shape or not x.type.is_float:
        what = "a learning rate" if name == "lr" else name
        raise error(f"sgd: {name} is {x.type}", f"{what} is a float without axes")


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


@dataclass(frozen=True)
class SGD:
    """``torch.optim.SGD``, for `training_step`.

    Attributes:
        lr: learning rate; None makes it an argument of the step, so that schedules work.
        momentum: how much of the momentum buffer is kept.
        dampening: what the gradient loses on its way into the buffer, but for the first step.
        weight_decay: factor of an L2 penalty.
        nesterov: look ahead along the momentum.
    """

    lr: float | None = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        lr = 0 if self.lr is None else self.lr
        numbers = (self.momentum, self.dampening, self.weight_decay, self.nesterov)
        _check_numbers("SGD", lr, *numbers)

    @property
    def counts_steps(self) -> bool:
        """Whether the first step differs from the others: it alone is not dampened."""
        return self.momentum != 0 and self.dampening != 0

    def step(
        self,
        param: Tensor,
        grad: Tensor,
        momentum_buffer: Tensor | None,
        lr: float | Tensor,
        taken: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """New values of a parameter and of its momentum buffer.

        Args:
            param: the parameter.
            grad: its gradient.
            momentum_buffer: zeros at first; needed with ``momentum``.
            lr: learning rate.
            taken: how many steps were taken before, where `counts_steps`.
        """
        dampening: float | Tensor = self.dampening
        if self.counts_steps:
            dampening = where(taken == 0, 0.0, self.dampening)
        return sgd(
            param, grad, momentum_buffer, lr, self.momentum, dampening, self.weight_decay,
            self.nesterov,
        )  # fmt: skip
