"""`Module`: a compiled program as the user holds it.

Arguments in, arrays out; parameters and buffers by name; for a program compiled with its gradient,
``forward`` and ``backward``. In: a `Signature` and an `Executor`; knows nothing of graphs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bngen.errors import CallError
from bngen.runtime import threads
from bngen.runtime.arguments import ArgSpec, deliver, is_torch, prepare_all
from bngen.runtime.calls import Operand
from bngen.runtime.executor import Executor, Step, view
from bngen.runtime.memory import empty_aligned
from bngen.runtime.native import Entry


@dataclass(frozen=True)
class OutputSpec:
    """One result of a call.

    Attributes:
        name: label, ``""`` where the program gave none.
        shape: logical shape.
        dtype: element type.
        slot: slot that the kernels write it to, in fresh memory of each call; None where it is
            copied from ``operand`` or from the input ``source``.
        offset: bytes into the slot.
        operand: where it lies in the arena.
        source: name of the input that it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    slot: str | None = None
    offset: int = 0
    operand: Operand | None = None
    source: str | None = None


@dataclass(frozen=True)
class LabelCheck:
    """An input whose elements index classes: [0, classes), or ``ignore``."""

    name: str
    classes: int
    ignore: int | None = None


@dataclass(frozen=True)
class Signature:
    """Everything a call needs to know of the program.

    Attributes:
        program: its name.
        arguments: what a call takes, in order.
        state: parameters and buffers the module holds.
        cotangents: gradients of outputs that ``backward`` takes.
        outputs: results of the program.
        gradients: results of ``backward``, by input name.
        update_copies: (input name, operand) of updates that are copied after the run.
        forward_steps: how many steps come before ``backward``.
        tuple_output: whether a single result is still returned in a tuple.
        named_outputs: whether results are returned as a dict.
        labels: inputs to check before a run.
        memory: bytes by use; see `Module.memory`.
    """

    program: str
    arguments: tuple[ArgSpec, ...]
    state: tuple[ArgSpec, ...]
    cotangents: tuple[ArgSpec, ...]
    outputs: tuple[OutputSpec, ...]
    gradients: tuple[OutputSpec, ...] = ()
    update_copies: tuple[tuple[str, Operand], ...] = ()
    forward_steps: int = 0
    tuple_output: bool = False
    named_outputs: bool = False
    labels: tuple[LabelCheck, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A compiled program as data: all that a module needs besides its machine code.

    Attributes:
        signature: names, shapes and results.
        steps: calls of kernels, in order.
        nbytes: size of the arena.
        manifest: see `Module.manifest`.
    """

    signature: Signature
    steps: tuple[Step, ...]
    nbytes: int
    manifest: Mapping[str, Any]


class Inside(Protocol):
    """What can be shown of a module's kernels."""

    def texts(self, kind: str) -> dict[str, str]:
        """``tir``, ``ll`` or ``asm``, by symbol."""

    def objects(self) -> Mapping[str, bytes]:
        """Object files, by symbol."""


USER_ALIGNMENT = 1
"""Kernels read users' arrays with unaligned moves; any address works."""


class Module:
    """A compiled program.

    Call it with the program's arguments, NumPy arrays or PyTorch CPU tensors (NCHW); it returns
    arrays of the same kind. Not re-entrant: one call at a time.

    Args:
        built: what it runs.
        entries: the kernels, by symbol.
        initialize: draws the value of a parameter or buffer: ``(name, rng) -> array``.
        inside: texts and objects, for `emit` and `save_objects`.
        num_threads: threads during calls; None for the process's setting.
    """

    def __init__(
        self,
        built: Built,
        entries: Mapping[str, Entry],
        initialize: Callable[[str, np.random.Generator], np.ndarray],
        inside: Inside,
        num_threads: int | None = None,
    ):
        self.signature = built.signature
        self._manifest, self._initialize, self._inside = built.manifest, initialize, inside
        self._threads = num_threads
        self._state = {spec.name: _zeros(spec.shape, spec.dtype) for spec in self.signature.state}
        fixed = {f"in:{name}": array for name, array in self._state.items()}
        self._executor = Executor(built.steps, entries, built.nbytes, fixed)
        self._output_bytes = _slot_bytes(self.signature.outputs)
        self._gradient_bytes = _slot_bytes(self.signature.gradients)
        self._initialized = not self._state
        self._tape: list[Any] | None = None

    # --- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name."""
        return {name: array.copy() for name, array in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Module:
        """Copy parameters and buffers in: NumPy arrays or PyTorch tensors by name.

        Args:
            state: arrays by name.
            strict: as in PyTorch, whether the names must be the module's own; else what is
                missing stays as it is (zeros before `init`) and what is unknown is passed over.

        Raises:
            CallError: for names, shapes or dtypes that do not fit; nothing is changed then.
        """
        missing = sorted(set(self._state) - set(state))
        unknown = sorted(set(state) - set(self._state))
        if strict and (missing or unknown):
            what = f"missing {missing[:3]}" if missing else f"unknown {unknown[:3]}"
            count = len(missing or unknown)
            raise CallError(
                f"{self.signature.program}: {count} names of the state do not match: {what}",
                hint="mod.state_dict() lists the names; strict=False takes what fits",
            )
        arrays = {}
        for spec in self.signature.state:
            if spec.name not in state:
                continue
            value = state[spec.name]
            array = value.detach().cpu().numpy() if is_torch(value) else np.asarray(value)
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise CallError(
                    f"{self.signature.program}: {spec.name!r} is {array.dtype}{list(array.shape)}, "
                    f"not {spec.dtype}{list(spec.shape)}",
                    hint="convert it first",
                )
            arrays[spec.name] = array
        for name, array in arrays.items():
            np.copyto(self._state[name], array)
        self._initialized = True
        return self

    def init(self, seed: int = 0) -> Module:
        """Fill parameters and buffers as PyTorch's layers do, from one seed."""
        rng = np.random.default_rng(seed)
        for spec in self.signature.state:
            np.copyto(self._state[spec.name], self._initialize(spec.name, rng))
        self._initialized = True
        return self

    # --- calls --------------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the program; see `forward`."""
        return self.forward(*args, **named)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Run the program.

        Args:
            *args: arguments in the program's order.
            **named: arguments by name.

        Returns:
            The result, a tuple of results, or a dict where the program returns one.

        Raises:
            CallError: for arguments that cannot be used; nothing has run then.
        """
        if not self._initialized:
            raise CallError(
                f"{self.signature.program}: parameters have no values yet",
                hint="call mod.init(seed) or mod.load_state_dict(state) first",
            )
        values = self._positional(args, named)
        slots, write_backs = self._prepare(self.signature.arguments, values)
        self._check_labels(slots)
        as_torch = any(is_torch(v) for v in values)
        slots.update(_fresh(self._output_bytes))
        with threads.using(self._threads or 0):
            self._executor.run(slots, 0, self.signature.forward_steps)
        results = [self._result(spec, slots, as_torch) for spec in self.signature.outputs]
        for name, operand in self.signature.update_copies:
            np.copyto(self._input(name, slots), self._value(operand, slots))
        for write_back in write_backs:
            write_back()
        if self.signature.gradients:
            self._tape = [slots, as_torch]
        return self._packed(results)

    def backward(self, *grad_outputs: Any) -> dict[str, Any]:
        """Gradients of the last ``forward`` call.

        Args:
            *grad_outputs: the gradient of each floating-point output; may be left out for a scalar.

        Returns:
            Gradients by input name.

        Raises:
            CallError: before ``forward``, a second time, or with the wrong shapes.
        """
        program = self.signature.program
        if not self.signature.gradients:
            hint = "bngen.build(..., grad=True)"
            raise CallError(f"{program}: built without gradients", hint=hint)
        if self._tape is None:
            raise CallError(
                f"{program}: backward needs a forward call first, and one for each backward",
                hint="call mod.forward(...) before mod.backward(...)",
            )
        specs = self.signature.cotangents
        if not grad_outputs and all(s.shape == () for s in specs):
            grad_outputs = tuple(np.ones((), s.dtype) for s in specs)
        if len(grad_outputs) != len(specs):
            raise CallError(
                f"{program}: backward takes {len(specs)} gradients, got {len(grad_outputs)}",
                hint="one for each floating-point output, in order",
            )
        cotangents, _ = self._prepare(specs, grad_outputs)
        slots, as_torch = self._tape
        slots = {**slots, **cotangents, **_fresh(self._gradient_bytes)}
        as_torch = as_torch or any(is_torch(v) for v in grad_outputs)
        with threads.using(self._threads or 0):
            self._executor.run(slots, self.signature.forward_steps, None)
        self._tape = None
        return {spec.name: self._result(spec, slots, as_torch) for spec in self.signature.gradients}

    # --- what it is ---------------------------------------------------------------------------

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: ``parameters``, ``saved`` for backward, ``scratch``, ``arena`` (both), ``peak``.

        The peak counts parameters and buffers, the arena and the results that a step hands out.
        """
        return dict(self.signature.memory)

    def manifest(self) -> dict[str, Any]:
        """Signature, layouts, kernels with the sub-layers each holds, counts, target."""
        return copy.deepcopy(dict(self._manifest))

    def emit(self, kind: str) -> dict[str, str]:
        """Texts by kernel: ``tir`` (scheduled TIR), ``ll`` (LLVM IR), ``asm``."""
        return self._inside.texts(kind)

    def save_objects(self, folder: Path) -> None:
        """Write an object file for each distinct kernel into an existing folder."""
        for symbol, content in self._inside.objects().items():
            (folder / f"{symbol}.o").write_bytes(content)

    def without_work(self) -> Module:
        """Let every kernel return at once, to time what else a step costs; results mean nothing."""
        self._executor.without_work()
        return self

    # --- inside -------------------------------------------------------------------------------

    def _positional(self, args: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        specs = self.signature.arguments
        names = [s.name for s in specs]
        unknown = [n for n in named if n not in names[len(args) :]]
        if len(args) + len(named) != len(specs) or unknown:
            given = f"{len(args)} and {sorted(named)}" if named else str(len(args))
            raise CallError(
                f"{self.signature.program} takes {len(specs)} arguments ({', '.join(names)}), "
                f"got {given}"
            )
        return [*args, *(named[n] for n in names[len(args) :])]

    def _prepare(self, specs: Sequence[ArgSpec], values: Sequence[Any]):
        arrays, write_backs = prepare_all(self.signature.program, specs, values, USER_ALIGNMENT)
        slots = {f"in:{s.name}": array for s, array in zip(specs, arrays, strict=True)}
        return slots, write_backs

    def _result(self, spec: OutputSpec, slots: Mapping[str, np.ndarray], as_torch: bool) -> Any:
        if spec.slot is not None:
            array = view(slots[spec.slot], spec.offset, spec.shape, spec.dtype)
        elif spec.operand is not None:
            array = self._value(spec.operand, slots).copy()
        else:
            array = self._input(spec.source, slots).copy()
        return deliver(array, as_torch)

    def _input(self, name: str, slots: Mapping[str, np.ndarray]) -> np.ndarray:
        """An argument of the call that runs, or a parameter or buffer."""
        return self._state[name] if name in self._state else slots[f"in:{name}"]

    def _value(self, operand: Operand, slots: Mapping[str, np.ndarray]) -> np.ndarray:
        """A view of what kernels wrote: in the arena, in a result or over an input."""
        if operand.slot is None:
            return self._executor.read(operand)
        name = operand.slot.removeprefix("in:")
        buffer = self._state[name] if name in self._state else slots[operand.slot]
        return view(buffer, operand.offset, operand.shape, operand.dtype)

    def _packed(self, results: list[Any]) -> Any:
        if self.signature.named_outputs:
            names = (s.name for s in self.signature.outputs)
            return _by_label(dict(zip(names, results, strict=True)))
        if len(results) == 1 and not self.signature.tuple_output:
            return results[0]
        return tuple(results)

    def _check_labels(self, slots: Mapping[str, np.ndarray]) -> None:
        for check in self.signature.labels:
            labels = slots[f"in:{check.name}"]
            wrong = (labels < 0) | (labels >= check.classes)
            also = ""
            if check.ignore is not None:
                wrong &= labels != check.ignore
                also = f", and {check.ignore} is ignored"
            if wrong.any():
                raise CallError(
                    f"{self.signature.program}: {check.name!r} holds {labels[wrong][0]}, but there "
                    f"are {check.classes} classes",
                    hint=f"labels run from 0 to {check.classes - 1}{also}",
                )


def _slot_bytes(specs: Sequence[OutputSpec]) -> dict[str, int]:
    """The size of each slot that results are written to."""
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.slot is not None:
            end = spec.offset + math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
            sizes[spec.slot] = max(sizes.get(spec.slot, 0), end)
    return sizes


def _fresh(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Memory for results, owned by the caller afterwards."""
    return {slot: empty_aligned((nbytes,), "uint8") for slot, nbytes in sizes.items()}


def _by_label(results: dict[str, Any]) -> Any:
    """A dict; of a program made by `value_and_grad`, which labels so, (value, gradients)."""
    first, *rest = results
    if first != "value" or not rest or not all(n.startswith("grad:") for n in rest):
        return results
    return results[first], {n.removeprefix("grad:"): results[n] for n in rest}


def _zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    array = empty_aligned(shape, dtype)
    array.fill(0)
    return array
