"""`Module`: a compiled program as the user holds it.

Arguments in, arrays out; parameters and buffers by name; for a program compiled with its gradient,
``forward`` and ``backward``. In: a `Bundle` and its kernels, loaded; knows nothing of graphs. What
waits between the two is `pending`'s, where results go is `results`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.labels import handed_out
from bngen.runtime import threads
from bngen.runtime.arguments import ArgSpec, WriteBack, is_torch, prepare_all
from bngen.runtime.bundle import Bundle, check_text
from bngen.runtime.executor import Executor, Memory
from bngen.runtime.given import Cotangents, check_labels, in_order
from bngen.runtime.native import Entry
from bngen.runtime.pending import Call, Pending
from bngen.runtime.results import Results
from bngen.runtime.signature import BACKWARD, FORWARD, input_slot
from bngen.runtime.state import State
from bngen.runtime.turns import Turns, alone

USER_ALIGNMENT = 1
"""Kernels read users' arrays with unaligned moves; any address works."""


class Module:
    """A compiled program.

    Call it with the program's arguments, NumPy arrays or PyTorch CPU tensors (NCHW); it returns
    arrays of the same kind. PyTorch's autograd does not see through a call: tensors that require
    grad are refused, but under ``torch.no_grad()``.

    Each ``forward`` of a program compiled with its gradient is a `Call` that waits for its
    ``backward``; several may wait at once, each with memory of its own. Several threads may call a
    module: one call runs at a time, the others wait, and ``backward`` is for the last ``forward``
    of its own thread unless it is told which.

    Arguments that ``backward`` reads are copied by ``forward``, so that NumPy arrays may be changed
    between the two. A tensor whose memory is PyTorch's own is read where it lies: changed in place
    before ``backward``, by an operation that PyTorch's version counter sees, it is refused.

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
        fixed = {input_slot(name): array for name, array in self._state.arrays.items()}
        self._executor = Executor(built.steps, entries, fixed)
        program = self.signature.program
        self._outputs = Results(program, self.signature.outputs, USER_ALIGNMENT)
        self._gradients = Results(program, self.signature.gradients, USER_ALIGNMENT)
        self._cotangents = Cotangents(self.signature)
        self._pending = Pending(self.signature, built.nbytes)
        self._spans = {call.name: call for call in self.signature.calls}
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
            self._state.put(spec.name, initializer.draw(rng, spec.shape, spec.dtype))
        self._state.initialized, self._turns.cut_short = True, False
        return self

    @alone
    def _take(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._state.put(name, array)
        self._state.initialized = True
        if arrays.keys() == self._state.arrays.keys():
            self._turns.cut_short = False

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
        return self._forward(args, named)

    @alone
    def record(self, *args: Any, **named: Any) -> tuple[Any, Call]:
        """Run the program, and keep the call for a ``backward`` at any later time.

        Args:
            *args: arguments in the program's order.
            **named: arguments by name.

        Returns:
            What `forward` returns, and the call.

        Raises:
            CallError: as `forward`; for a program that was built without its gradient.
        """
        self._check_differentiated()
        result = self._forward(args, named)
        call = self.last_call
        assert call is not None
        return result, call

    @property
    def last_call(self) -> Call | None:
        """The last call of ``forward`` in this thread.

        It gives its memory to the next one, unless somebody holds it. None before the first one,
        and of a program that was built without its gradient.
        """
        return self._pending.last

    @alone
    def backward(
        self,
        *grad_outputs: Any,
        call: Call | None = None,
        out: Mapping[str, Any] | None = None,
        accumulate: bool = False,
    ) -> dict[str, Any]:
        """Gradients of a call of ``forward``; once for each.

        Args:
            *grad_outputs: the gradient of each floating-point output, None for zeros; may be left
                out where all are scalars, for ones.
            call: which one; the last of this thread by default.
            out: arrays or tensors that gradients are written to, by input name; of any strides, but
                of the gradient's type and shape. Other gradients come in fresh memory.
            accumulate: add to what ``out`` holds, in the gradient's type.

        Returns:
            Gradients by input name; those of ``out`` as they were given.

        Raises:
            CallError: before anything has run: without a call that waits for it, with the wrong
                types or shapes, or after what it reads of arguments or parameters was changed.
        """
        self._check_differentiated()
        self._check_whole()
        call, kept = self._pending.find(call)
        spec = self._spans[BACKWARD]
        changed = self._state.changed_since(kept.changes, spec.reads)
        if changed is not None:
            raise CallError(
                f"{self.signature.program}: {changed!r}, which backward reads, was changed by "
                "load_state_dict or init after the forward call",
                hint="call mod.forward(...) again",
            )
        specs = self.signature.cotangents
        cotangents, _ = self._prepare(specs, self._cotangents.in_order(grad_outputs))
        given = self._gradients.destinations(out)
        if accumulate and out is None:
            hint = "backward(..., out={'weight': array}, accumulate=True)"
            raise CallError(f"{self.signature.program}: accumulate onto what?", hint=hint)
        slots = {**kept.slots, **cotangents}
        slots |= self._gradients.memory(given, accumulate, list(slots.values()))
        as_torch = kept.as_torch or any(is_torch(v) for v in grad_outputs)
        self._pending.claim(call)
        try:
            self._run(BACKWARD, Memory(kept.frame.arena, slots))
        finally:
            self._pending.pool.give(kept.frame)
        results = self._gradients.handed_out(slots, as_torch, given, accumulate)
        names = (spec.name for spec in self.signature.gradients)
        return dict(zip(names, results, strict=True))

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

    def _check_differentiated(self) -> None:
        if BACKWARD not in self._spans:
            hint = "bngen.build(..., grad=True)"
            raise CallError(f"{self.signature.program}: built without gradients", hint=hint)

    def _forward(self, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        self._check_ready()
        values = in_order(self.signature, args, named)
        slots, write_backs = self._prepare(self.signature.arguments, values)
        check_labels(self.signature, slots)
        slots |= self._outputs.memory()
        as_torch = any(is_torch(v) for v in values)
        kept = self._pending.begin(values, slots, self._state.changes, as_torch)
        try:
            self._run(FORWARD, Memory(kept.frame.arena, slots))
            results = self._outputs.handed_out(slots, as_torch)
            for write_back in write_backs:
                write_back()
            result = self._packed(results)
        except BaseException:
            self._pending.pool.give(kept.frame)
            raise
        if BACKWARD in self._spans:
            self._pending.end(kept, bool(write_backs))
        else:
            self._pending.pool.give(kept.frame)
        return result

    def _run(self, name: str, memory: Memory) -> None:
        span = self._spans[name]
        with threads.using(self._threads or 0):
            self._executor.run(memory, span.start, span.stop)

    def _prepare(
        self, specs: Sequence[ArgSpec], values: Sequence[Any]
    ) -> tuple[dict[str, np.ndarray], list[WriteBack]]:
        arrays, write_backs = prepare_all(self.signature.program, specs, values, USER_ALIGNMENT)
        slots = {input_slot(s.name): array for s, array in zip(specs, arrays, strict=True)}
        return slots, write_backs

    def _packed(self, results: list[Any]) -> Any:
        outputs, named = self.signature.outputs, self.signature.named_outputs
        labels = [spec.name for spec in outputs] if named else ()
        return handed_out(results, labels, self.signature.tuple_output)
