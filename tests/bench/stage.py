"""Fake contenders that know how long their steps take: a race without processes."""

from dataclasses import dataclass, field

from bngen.bench.contenders import Entry
from bngen.bench.process import Unavailable
from bngen.bench.race import race

START = {"import": 1.0, "build": 2.0, "first_step": 0.5, "total": 3.75}
TIMES = {
    "bngen": (1.0, 2.0), "none": (2.0, 2.5), "eager": (2.0, 4.0), "compile": (1.5, 3.0),
    "bf16": (0.5, 1.0),
}  # fmt: skip


def turn(forward, backward, stationary=True):
    """What a turn is answered with."""
    return {
        "forward": forward, "backward": backward, "step": forward + backward, "steps": 3,
        "discarded": 5, "stationary": stationary,
    }  # fmt: skip


@dataclass
class Stage:
    """Where the fakes are; ``log`` is what they were asked, in order.

    ``fail`` is the number of the question (0: the start) that a contender dies of, ``free`` the
    bytes that are free whenever somebody looks.
    """

    losses: dict = field(default_factory=dict)
    fail: dict = field(default_factory=dict)
    free: list = field(default_factory=list)
    log: list = field(default_factory=list)

    def runner(self, entry):
        return FakeRunner(self, entry.contender)

    def entries(self, *names):
        return [Entry("net", name, batch=8, image=224) for name in names]

    def race(self, *names, rounds=3):
        return race(
            self.entries(*names), rounds, run=self.runner, settle=0.0,
            available=lambda: self.free.pop(0) if self.free else 0,
        )  # fmt: skip


@dataclass
class FakeRunner:
    stage: Stage
    name: str
    asked: int = 0

    def start(self):
        self.stage.log.append((self.name, "start"))
        if self.stage.fail.get(self.name) == 0:
            raise Unavailable("there is none here")
        loss = self.stage.losses.get(self.name, 6.9)
        return {"loss": loss, **START}

    def ask(self, what):
        self.asked += 1
        self.stage.log.append((self.name, what))
        if self.asked == self.stage.fail.get(self.name):
            raise Unavailable("its process ended with status -9")
        if what == "peak":
            return {"peak": 1 << 20}
        if what == "overhead":
            return {"overhead": None if self.name == "eager" else 0.003}
        return turn(*TIMES[self.name])

    def stop(self):
        self.stage.log.append((self.name, "stop"))
