"""A training step of a built-in network as PyTorch takes it, in the forms that people run it in.

In: a network's name, its weights, a batch, and how to run it. Out: an object whose `forward` gives
the loss and whose `backward` computes all gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bngen.torch_bridge.networks import loss_of, make_network


class TrainingStep:
    """Both halves of a step, on one batch.

    Args:
        name: a built-in network.
        state: parameters and buffers by torchvision's names.
        images: ``[N, 3, H, W]``.
        labels: ``[N]``, or ``[N, H, W]`` of a network for segmentation.
        channels_last: whether images and weights are NHWC in memory.
        compiler: the backend that `torch.compile` makes the step with; "" for none.
        precision: ``float32``, or ``bfloat16`` under `torch.autocast`; weights are float32 in both.
        threads: of PyTorch; its own choice when None.

    Raises:
        UsageError: for a program that is no built-in network.
    """

    def __init__(
        self, name: str, state: Mapping[str, np.ndarray], images: np.ndarray, labels: np.ndarray,
        *, channels_last: bool, compiler: str, precision: str, threads: int | None,
    ):  # fmt: skip
        use_threads(threads)
        network = make_network(name, len(images), images.shape[2])
        network.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        # In PyTorch's own memory, as a DataLoader gives them: NumPy's is copied by each forward.
        self._x, self._labels = torch.tensor(images), torch.tensor(labels)
        if channels_last:
            network = network.to(memory_format=torch.channels_last)
            self._x = self._x.contiguous(memory_format=torch.channels_last)
        self._parameters = list(network.parameters())

        def loss(x: Tensor, labels: Tensor) -> Tensor:
            return loss_of(name, network(x), labels)

        if precision == "bfloat16":
            loss = torch.autocast("cpu", torch.bfloat16)(loss)
        self._loss_of = torch.compile(loss, backend=compiler) if compiler else loss
        self._loss: Tensor | None = None

    def forward(self) -> float:
        """Compute the loss."""
        for p in self._parameters:
            p.grad = None  # as `zero_grad(set_to_none=True)` does
        self._loss = self._loss_of(self._x, self._labels)
        return float(self._loss.detach())

    def backward(self) -> None:
        """Compute the gradients of all parameters."""
        self._loss.backward()
        self._loss = None


def use_threads(count: int | None) -> None:
    """Let PyTorch run on so many threads; None leaves it as it is."""
    if count:
        torch.set_num_threads(count)
