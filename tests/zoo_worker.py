"""The process of a contender of `zoo_race`: one training step of a model of the zoo, in PyTorch.

In: an entry whose program is the model's name, and `CLOCK` in the environment. Protocol, turns and
how it is kept idle are the bench's own.
"""

from __future__ import annotations

import os
import time

import torch

from bngen.bench import worker
from bngen.bench.contenders import Entry
from bngen.bench.forms import FORMS
from bngen.bench.turns import Rule
from tests import zoo_models
from tests.zoo import losses

CLOCK = "BNGEN_ZOO_CLOCK"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RULE = Rule(window=2, span=0.3, tolerance=0.03, windows=4, seconds=6.0)
"""Of a turn: shorter than the bench's, as there are dozens of models."""


class ZooStep:
    """A model with weights and a batch that follow from the entry's seed, ready for its steps."""

    def __init__(self, entry: Entry):
        form = FORMS[entry.contender]
        if entry.threads:
            torch.set_num_threads(entry.threads)
        torch.manual_seed(entry.seed)
        model = zoo_models.make(entry.program)
        zoo_models.seeded(model, entry.seed)
        self._x = torch.randn(entry.batch, 3, entry.image, entry.image)
        self._labels = torch.randint(0, 1000, (entry.batch,))
        if form.channels_last:
            model = model.to(memory_format=torch.channels_last)
            self._x = self._x.contiguous(memory_format=torch.channels_last)
        if form.compiler:
            model.compile(backend=form.compiler)
        self._model, self._loss = model, None

    def forward(self) -> float:
        """See `bngen.bench.contenders.Contender`."""
        self._model.zero_grad(set_to_none=True)
        self._loss = losses(self._model(self._x), self._labels)
        return float(self._loss.detach())

    def backward(self) -> None:
        """See `bngen.bench.contenders.Contender`."""
        self._loss.backward()
        self._loss = None

    def without_work(self) -> bool:
        """See `bngen.bench.contenders.Contender`."""
        return False


if __name__ == "__main__":
    worker.main(ZooStep, RULE, CLOCKS[os.environ.get(CLOCK, "wall")])
