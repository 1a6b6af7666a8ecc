"""`Module`: a compiled program as the user holds it.

Arguments in, arrays out; parameters and buffers by name; for a program compiled with its gradient,
``forward`` and ``backward``. In: a `Bundle` and its kernels, loaded; knows nothing of graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.runtime import threads
from bngen.runtime.arguments import ArgSpec, deliver, is_torch, prepare_all
from bngen.runtime.bundle import Bundle, check_text
from bngen.runtime.calls import Operand
from bngen.runtime.executor import Executor, view
from bngen.runtime.formats import to_logical_order
from bngen.runtime.memory import empty_aligned
from bngen.runtime.native import Entry
from bngen.runtime.signature import Built, OutputSpec
from bngen.runtime.state import State
from bngen.runtime.tape import INPUT, Recorder
from bngen.runtime.turns import Turns, alone

USER_ALIGNMENT = 1
"""Kernels read users' arrays with unaligned moves; any address works."""


class Module:
    """A compiled program.

    Call it with the program's arguments, NumPy arrays or PyTorch CPU tensors (NCHW); it returns
    arrays of the same kind. Several threads may call it: one call runs at a time, the others wait,
    and ``backward`` belongs to the last ``forward`` of all threads. What ``backward`` reads of the
    arguments is copied by ``forward``, so they may be changed between the two. PyTorch's autograd
    does not see through a call: tensors that require grad are refused, but under
    ``torch.no_grad()``.

    A copy (`copy.copy` and `copy.deepcopy` alike) shares the machine code and nothing else; a
    pickle holds machine code and state. A call that waits for its ``backward`` is in neither.

    Args:
        bundle: what was compiled.
        entries: its kernels, by symbol.
        texts: makes the texts of a kind that are not in the bundle, by symbol.
        num_threads: threads during calls; None for the process's setting.
    """

    def __init__(
        self,
        bundle: Bundle,
        entries: Mapping[str, Entry],
        texts: Callable[[str], dict[str, str]] | None = None,
        num_threads: int | None = None,
    ):
        built = bundle.built
        self.signature = built.signature
        self._bundle, self._entries = bundle, entries
        self._texts, self._threads = texts, num_threads
        self._state = State(self.signature.program, self.signature.state)
        fixed = {INPUT + name: array for name, array in self._state.arrays.items()}
        self._executor = Executor(built.steps, entries, built.nbytes, fixed)
        self._output_bytes = _slot_bytes(self.signature.outputs)
        self._gradient_bytes = _slot_bytes(self.signature.gradients)
        read = _read_late(built)
        self._recorder = Recorder(self.signature.program, read, self.signature.arguments)
        self._turns = Turns()

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Module:
        copied = Module(self._bundle, self._entries, self._texts, self._threads)
        state = self._values()
        return copied if state is None else copied.load_state_dict(state)

    def __copy__(self) -> Module:
        return self.__deepcopy__(None)

    def __reduce__(self) -> tuple[Any, ...]:
        from bngen.runtime.loading import restore  # which makes modules

        return restore, (self._bundle, self._threads, self._values())

    # --- state --------------------------------------------------------------------------------

    @alone
    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by name."""
        self._check_whole()
        return self._state.copies()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Module:
        """Copy parameters and buffers in: NumPy arrays or PyTorch tensors by name.

        Args:
            state: arrays by name.
            strict: as in PyTorch, whether the names must be the module's own; else what is
                missing stays as it is (zeros before `init`) and what is unknown is passed over.

        Raises:
            CallError: for names, shapes or dtypes that do not fit; nothing is changed then.
        """
        self._take(self._state.fitting(state, strict))
        return self

    @alone
    def init(self, seed: int = 0) -> Module:
        """Fill parameters and buffers as PyTorch's layers do, from one seed.

        Raises:
            CallError: for what is no seed of `numpy.random.default_rng`.
        """
        try:
            rng = np.random.default_rng(seed)
        except (TypeError, ValueError) as error:
            raise CallError(f"init: {seed!r} is no seed: {error}", hint="init(0)") from None
        for spec in self.signature.state:
            initializer = self._bundle.initializers[spec.name]
            self._set(spec.name, initializer.draw(rng, spec.shape, spec.dtype))
        self._state.initialized, self._turns.cut_short = True, False
        return self

    @alone
    def _take(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._set(name, array)
        self._state.initialized = True
        if arrays.keys() == self._state.arrays.keys():
            self._turns.cut_short = False

    def _set(self, name: str, value: np.ndarray) -> None:
        self._recorder.changed(name)
        self._state.fill(name, value)

    @alone
    def _values(self) -> dict[str, np.ndarray] | None:
        """Copies of parameters and buffers; None where they have no values yet."""
        self._check_whole()
        return self._state.copies() if self._state.initialized else None

    def _check_whole(self) -> None:
        """Refuse values that a thread was writing when this process was forked from it."""
        if self._state.arrays and self._turns.cut_short:
            raise CallError(
                f"{self.signature.program}: this process was forked in the middle of a call, whose "
                "parameters and buffers may be half written",
                hint="load_state_dict or init them again, or fork between calls",
            )

    # --- calls --------------------------------------------------------------------------------

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the program; see `forward`."""
        return self.forward(*args, **named)

    @alone
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
        self._check_ready()
        values = self._positional(args, named)
        slots, write_backs = self._prepare(self.signature.arguments, values)
        self._check_labels(slots)
        as_torch = any(is_torch(v) for v in values)
        slots.update(_fresh(self._output_bytes))
        self._recorder.begin(slots)
        with threads.using(self._threads or 0):
            self._executor.run(slots, 0, self.signature.forward_steps)
        results = [self._result(spec, slots, as_torch) for spec in self.signature.outputs]
        for name, operand in self.signature.update_copies:
            np.copyto(self._input(name, slots), self._value(operand, slots))
        for write_back in write_backs:
            write_back()
        if self.signature.gradients:
            self._recorder.end(slots, as_torch)
        return self._packed(results)

    @alone
    def backward(self, *grad_outputs: Any) -> dict[str, Any]:
        """Gradients of the last ``forward`` call.

        Args:
            *grad_outputs: the gradient of each floating-point output; may be left out for a scalar.

        Returns:
            Gradients by input name.

        Raises:
            CallError: before ``forward``, a second time, with the wrong shapes, in another thread,
                or after parameters were changed.
        """
        program = self.signature.program
        if not self.signature.gradients:
            hint = "bngen.build(..., grad=True)"
            raise CallError(f"{program}: built without gradients", hint=hint)
        tape = self._recorder.look()
        specs = self.signature.cotangents
        if not grad_outputs and all(s.shape == () for s in specs):
            grad_outputs = tuple(np.ones((), s.dtype) for s in specs)
        if len(grad_outputs) != len(specs):
            raise CallError(
                f"{program}: backward takes {len(specs)} gradients, got {len(grad_outputs)}",
                hint="one for each floating-point output, in order",
            )
        cotangents, _ = self._prepare(specs, grad_outputs)
        slots = {**tape.slots, **cotangents, **_fresh(self._gradient_bytes)}
        as_torch = tape.as_torch or any(is_torch(v) for v in grad_outputs)
        self._recorder.lose()
        with threads.using(self._threads or 0):
            self._executor.run(slots, self.signature.forward_steps, None)
        return {spec.name: self._result(spec, slots, as_torch) for spec in self.signature.gradients}

    # --- what it is ---------------------------------------------------------------------------

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: ``parameters``, ``saved`` for backward, ``scratch``, ``arena`` (both), ``peak``.

        The peak counts parameters and buffers, the arena and the results that a step hands out;
        copies of arguments that ``backward`` reads come on top.
        """
        return dict(self.signature.memory)

    @property
    def bundle(self) -> Bundle:
        """What was compiled, to be saved or looked at."""
        return self._bundle

    def manifest(self) -> dict[str, Any]:
        """Signature, layouts, kernels with the sub-layers each holds, counts, target, imports."""
        return self._bundle.manifest()

    def emit(self, kind: str) -> dict[str, str]:
        """Texts by kernel: ``tir`` (scheduled TIR), ``ll`` (LLVM IR), ``asm``.

        Raises:
            BngenError: for a loaded bundle that does not hold them.
        """
        check_text(kind)
        if self._texts is not None and kind not in self._bundle.texts:
            return self._texts(kind)
        return self._bundle.emit(kind)

    def save_objects(self, folder: Path) -> None:
        """Write an object file for each distinct kernel into an existing folder."""
        for symbol, content in self._bundle.objects.items():
            (folder / f"{symbol}.o").write_bytes(content)

    @alone
    def without_work(self) -> Module:
        """Let every kernel return at once, to time what else a step costs; results mean nothing."""
        self._executor.without_work()
        return self

    # --- inside -------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if not self._state.initialized:
            raise CallError(
                f"{self.signature.program}: parameters have no values yet",
                hint="call mod.init(seed) or mod.load_state_dict(state) first",
            )
        self._check_whole()

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
        slots = {INPUT + s.name: array for s, array in zip(specs, arrays, strict=True)}
        return slots, write_backs

    def _result(self, spec: OutputSpec, slots: Mapping[str, np.ndarray], as_torch: bool) -> Any:
        if spec.slot is not None:
            array = view(slots[spec.slot], spec.offset, spec.memory_shape, spec.dtype)
        elif spec.operand is not None:
            array = self._value(spec.operand, slots).copy()
        else:
            array = self._input(spec.source, slots).copy().reshape(spec.memory_shape)
        return deliver(to_logical_order(array, spec.memory_format), as_torch)

    def _input(self, name: str, slots: Mapping[str, np.ndarray]) -> np.ndarray:
        """An argument of the call that runs, or a parameter or buffer."""
        return self._state.arrays[name] if name in self._state.arrays else slots[INPUT + name]

    def _value(self, operand: Operand, slots: Mapping[str, np.ndarray]) -> np.ndarray:
        """A view of what kernels wrote: in the arena, in a result or over an input."""
        if operand.slot is None:
            return self._executor.read(operand)
        name = operand.slot.removeprefix(INPUT)
        held = self._state.arrays
        buffer = held[name] if name in held else slots[operand.slot]
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
            labels = slots[INPUT + check.name]
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


def _read_late(built: Built) -> set[str]:
    """The slots that ``backward`` reads: those of its steps, and of gradients that are inputs."""
    signature = built.signature
    late = [o for step in built.steps[signature.forward_steps :] for o in step.operands]
    late += [g.operand for g in signature.gradients if g.operand is not None]
    sources = {INPUT + g.source for g in signature.gradients if g.source is not None}
    return sources | {o.slot for o in late if o.slot is not None}


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
