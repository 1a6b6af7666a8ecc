"""The command line on a stand-in compiler: modules that interpret, bundles of no code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest

from bngen.cli import main as cli
from bngen.ir import interp
from bngen.lang.init import fill
from bngen.runtime.bundle import Bundle
from bngen.runtime.signature import Built, Signature


class InterpretedModule:
    """What `bngen.compiler.build` promises, done by the interpreter."""

    def __init__(self, program, tweak):
        self.graph, self._tweak = program.graph, tweak
        self.name = program.name
        self._state, self._connected = {}, False

    def connect_alone(self):
        self._connected = True
        return self

    def init(self, seed):
        rng = np.random.default_rng(seed)
        held = (i for i in self.graph.inputs if i.kind != "input")
        self._state = {i.name: fill(i, rng) for i in held}

    def state_dict(self):
        return self._state

    def load_state_dict(self, state):
        self._state = {name: np.array(array) for name, array in state.items()}

    def __call__(self, *args):
        assert self._connected  # as programs of several ranks need it
        names = [i.name for i in self.graph.inputs if i.kind == "input"]
        arguments = dict(zip(names, args, strict=True))
        results = interp.run(self.graph, {**self._state, **arguments})
        for name, new in results.updates.items():
            {**self._state, **arguments}[name][...] = new
        outputs = tuple(self._tweak(i, a) for i, a in enumerate(results.outputs))
        return outputs if self.graph.tuple_output or len(outputs) > 1 else outputs[0]

    def manifest(self):
        return MANIFEST

    def emit(self, kind):
        return texts(kind)


MANIFEST = {
    "target": {
        "text": "llvm -mcpu=x86-64-v3", "cpu": "x86-64-v3", "lanes": 8, "arch": "x86_64",
        "system": "linux", "features": [],
    },
    "counts": {"before": 9, "after": 4, "distinct": 3},
    "kernels": [
        {"name": "k0", "call": "forward", "sublayers": ["relu", "conv2d"], "rule": "conv",
         "knobs": {"kb": 4}, "inputs": [{"bytes": 3 << 20, "map": True}],
         "outputs": [{"bytes": 1 << 20, "map": True}, {"bytes": 99, "map": False}]}
    ],
}  # fmt: skip


def texts(kind):
    return {"k0": f"{kind} of k0\n", "k1": f"{kind} of k1\n"}


@dataclass
class StandInCompiler:
    """Records what is asked for; ``during`` runs where compiling would."""

    calls: list[dict] = field(default_factory=list)
    targets: list[tuple] = field(default_factory=list)
    during: object = lambda: None
    tweak: object = lambda index, array: array

    def build(self, program, **asked):
        self._compile(program, asked)
        return InterpretedModule(program, self.tweak)

    def bundle(self, program, **asked):
        self._compile(program, asked)
        built = Built(
            Signature(program.name, (), (), (), ()), (), 0, {"program": program.name, **MANIFEST}
        )
        return Bundle(
            built, {}, {"k0": b"object"}, texts={kind: texts(kind) for kind in asked["emit"]}
        )

    def _compile(self, program, asked):
        self.calls.append({"program": program, **asked})
        if asked["dump"]:
            asked["dump"]("fission", program.graph)
        asked["progress"](1, 2, "conv2d")
        self.during()
        asked["progress"](2, 2, "conv2d;bn_stats")

    def parse(self, spec=None, *, mcpu=None, mattr=()):
        self.targets.append((spec, mcpu, mattr))
        return spec


@pytest.fixture
def compiler(monkeypatch):
    """The stand-in, where the commands will import the compiler from."""
    stand_in = StandInCompiler()
    module = ModuleType("bngen.compiler")
    module.build, module.bundle = stand_in.build, stand_in.bundle
    monkeypatch.setitem(sys.modules, "bngen.compiler", module)
    monkeypatch.setattr("bngen.target.parse.Target.parse", stand_in.parse)
    return stand_in


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def error_line(self):
        """The one line of the error; whatever else is on standard error is progress."""
        lines = [line for line in self.err.splitlines() if line.startswith("bngen")]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def bngen(tmp_path, monkeypatch, capsys):
    """``bngen("build", ...)`` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BNGEN_DEBUG", raising=False)

    def run(*argv) -> Outcome:
        status = cli.main([str(word) for word in argv])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def bngen_process(tmp_path):
    """``bngen_process(code_or_args)``: the same in a process of its own."""

    def run(*argv, **kw):
        command = [sys.executable, "-m", "bngen.cli.main", *argv]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, **kw)

    return run
