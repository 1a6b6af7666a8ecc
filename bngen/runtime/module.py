"""`Module`: a compiled program as the user holds it.

Arguments in, arrays out; parameters and buffers by name; for a program compiled with its gradient,
``forward`` and ``backward``. In: a `Bundle` and its kernels, loaded; knows nothing of graphs. How
calls run is `calls`'s, what waits between the two is `pending`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bngen.errors import CallError
from bngen.runtime.bundle import Bundle, check_text
from bngen.runtime.calls import Backward, Calls
from bngen.runtime.communicator import Alone, Communicator
from bngen.runtime.entries import entries
from bngen.runtime.executor import Note
from bngen.runtime.native import Entry
from bngen.runtime.pending import Call
from bngen.runtime.state import State
from bngen.runtime.turns import Turns, alone


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
        self._state = State(self.signature.program, self.signature.state, bundle.initializers)
        self._calls = Calls(built, entries, self._state, num_threads)
        self._turns = Turns()

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Module:
        copied = Module(self._bundle, self._entries, self._texts, self._threads)
        copied._calls.carriers = self._calls.carriers
        state = self._values()
        return copied if state is None else copied.load_state_dict(state)

    def __copy__(self) -> Module:
        return self.__deepcopy__(None)

    def __reduce__(self) -> tuple[Any, ...]:
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
        for spec in self._state.specs.values():
            initializer = self._bundle.initializers[spec.name]
            self._state.put(spec.name, initializer.draw(rng, spec.shape, spec.dtype))
        self._state.initialized, self._turns.cut_short = True, False
        return self

    @alone
    def _take(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            self._state.put(name, array)
        self._state.initialized = True
        if arrays.keys() == self._state.specs.keys():
            self._turns.cut_short = False

    @alone
    def _values(self) -> dict[str, np.ndarray] | None:
        """Copies of parameters and buffers; None where they have no values yet."""
        self._check_whole()
        return self._state.copies() if self._state.initialized else None

    def _check_whole(self) -> None:
        """Refuse values that a thread was writing when this process was forked from it."""
        if self._state.specs and self._turns.cut_short:
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
        return self._calls.forward(args, named)

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
        self._calls.check_differentiated()
        self._check_ready()
        result = self._calls.forward(args, named)
        call = self.last_call
        assert call is not None
        return result, call

    @property
    def last_call(self) -> Call | None:
        """The last call of ``forward`` in this thread.

        It gives its memory to the next one, unless somebody holds it. None before the first one,
        and of a program that was built without its gradient.
        """
        return self._calls.pending.last

    @alone
    def backward(
        self,
        *grad_outputs: Any,
        call: Call | None = None,
        out: Mapping[str, Any] | None = None,
        accumulate: bool = False,
        retain: bool = False,
    ) -> dict[str, Any]:
        """Gradients of a call of ``forward``; once for each, unless it is retained.

        Args:
            *grad_outputs: the gradient of each floating-point output, None for zeros; may be left
                out where all are scalars, for ones.
            call: which one; the last of this thread by default.
            out: arrays or tensors that gradients are written to, by input name; of any strides, but
                of the gradient's type and shape. Other gradients come in fresh memory.
            accumulate: add to what ``out`` holds, in the gradient's type.
            retain: whether the call goes on waiting, for another ``backward``; this one then works
                on a copy of its memory, as much as `memory` says of the arena.

        Returns:
            Gradients by input name; those of ``out`` as they were given.

        Raises:
            CallError: before anything has run: without a call that waits for it, with the wrong
                types or shapes, or after what it reads of arguments or parameters was changed.
        """
        self._calls.check_differentiated()
        self._check_whole()
        return self._calls.backward(grad_outputs, call, out, accumulate, retain)

    @alone
    def begin_backward(
        self, *grad_outputs: Any, call: Call | None = None, retain: bool = False
    ) -> tuple[Backward, dict[str, Any]]:
        """Begin a ``backward`` that `advance` runs, part by part.

        Gradients are handed out at once; each is complete when all steps before its
        `OutputSpec.done` have run, and nobody here reads or writes it any more. Nor does anybody
        here hold them: whoever takes them has them alone.

        Args:
            *grad_outputs: see `backward`.
            call: see `backward`.
            retain: see `backward`.

        Returns:
            What is under way, and gradients by input name.

        Raises:
            CallError: see `backward`.
        """
        self._calls.check_differentiated()
        self._check_whole()
        return self._calls.begin_backward(grad_outputs, call, retain)

    @alone
    def advance(self, begun: Backward, stop: int | None = None) -> None:
        """Run the steps of a ``backward`` before ``stop``, or all, that have not run yet."""
        self._calls.advance(begun, stop)

    # --- other processes ----------------------------------------------------------------------

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups of ranks that the program exchanges values in."""
        return self._calls.groups

    @property
    def followers(self) -> Mapping[str, tuple[int, ...]]:
        """By group, ranks that had nothing of the last ``forward``'s batch and followed it."""
        return self._calls.followers

    @alone
    def connect(self, carriers: Mapping[str, Communicator]) -> Module:
        """Say who exchanges values with other processes; ``bngen.connect`` does, with PyTorch.

        Args:
            carriers: for each of `groups` its own.

        Raises:
            CallError: for a group that is left out.
        """
        if missing := [group for group in self.groups if group not in carriers]:
            raise CallError(
                f"{self.signature.program}: nobody was given for the group {missing[0]!r}",
                hint=f"it exchanges values in {', '.join(map(repr, self.groups))}",
            )
        self._calls.carriers = dict(carriers)
        return self

    def connect_alone(self) -> Module:
        """Let this process be the one rank of each of `groups`, if there are any."""
        return self.connect(dict.fromkeys(self.groups, Alone()))

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
    def watch(self, note: Note | None) -> Module:
        """Run steps one by one from now on, and tell of each; None runs them together again.

        Args:
            note: called after each step with its position among the module's steps, and the seconds
                of `time.perf_counter` at which it began and ended.
        """
        self._calls.executor.watch(note)
        return self

    @alone
    def without_work(self) -> Module:
        """Let every kernel return at once, to time what else a step costs; results mean nothing."""
        self._calls.executor.without_work()
        return self

    # --- inside -------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if not self._state.initialized:
            raise CallError(
                f"{self.signature.program}: parameters have no values yet",
                hint="call mod.init(seed) or mod.load_state_dict(state) first",
            )
        self._check_whole()


def restore(
    bundle: Bundle, num_threads: int | None, state: Mapping[str, np.ndarray] | None
) -> Module:
    """The module of a pickle.

    Args:
        bundle: what it runs.
        num_threads: threads of a call.
        state: parameters and buffers; None where they had no values.
    """
    module = Module(bundle, entries(bundle), num_threads=num_threads)
    return module if state is None else module.load_state_dict(state)
