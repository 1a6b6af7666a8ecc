"""How a module's calls run: arguments become memory, steps run over it, memory becomes results.

In: a program's signature, steps and code, the arrays of its parameters; then what callers give.
Out: what they get, and `Call`s that wait for their ``backward``. One call at a time: whoever calls
holds the module's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bngen.errors import CallError
from bngen.labels import handed_out
from bngen.runtime import host, threads
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.arguments import Arguments
from bngen.runtime.borrowed import Loan
from bngen.runtime.buffers import Buffer
from bngen.runtime.communicator import Communicator
from bngen.runtime.exchange import Exchanges
from bngen.runtime.executor import Executor, Memory
from bngen.runtime.given import Cotangents, check_labels, in_order
from bngen.runtime.native import Entry
from bngen.runtime.pending import Call, Frame, Kept, Pending, Pool
from bngen.runtime.results import Destination, Results
from bngen.runtime.signature import BACKWARD, FORWARD, Built, input_slot
from bngen.runtime.state import State
from bngen.runtime.tensors import WriteBack, is_torch

USER_ALIGNMENT = 1 if host.architecture() in ("x86_64", "aarch64") else 8
"""Kernels read users' arrays with unaligned moves; there any address works, and elsewhere one that
is a multiple of an element's size: RISC-V's vector moves may fault on others."""


class _Given:
    """What the caller of one of the calls gives: where it comes from, and where it goes to."""

    def __init__(self, program: str, specs: Sequence[ArgSpec]):
        self.arguments = Arguments(program, specs, USER_ALIGNMENT)
        self.slots = [input_slot(spec.name) for spec in specs]


class Backward:
    """A ``backward`` under way: as much of it has run as was asked for.

    Args:
        pool: what the frame goes back to.
        frame: its memory.
        memory: what its steps read and write.
        step: the first of its steps.
        loans: what they read of the caller's memory.
        as_torch: whether gradients go out as tensors.

    Attributes:
        step: the next of its steps.
    """

    def __init__(
        self,
        pool: Pool,
        frame: Frame,
        memory: Memory,
        step: int,
        loans: Sequence[Loan],
        as_torch: bool,
    ):
        self.memory, self.step, self.loans, self.as_torch = memory, step, loans, as_torch
        self._pool, self._frames = pool, [frame]

    @property
    def is_over(self) -> bool:
        """Whether its memory has been given back."""
        return not self._frames

    def end(self) -> None:
        """Give its memory back."""
        try:
            self._pool.give(self._frames.pop())
        except IndexError:
            pass  # It was.

    def __del__(self) -> None:
        self.end()


class Calls:
    """The calls of one module.

    Args:
        built: what it runs.
        entries: its kernels, by symbol.
        state: its parameters and buffers.
        num_threads: threads during calls; None for the process's setting.

    Attributes:
        pending: the calls that wait for their ``backward``.
        executor: runs the steps.
        carriers: who exchanges values with other processes, by group.
        followers: of the last ``forward``, by group the ranks that had no part of its batch.
    """

    def __init__(
        self, built: Built, entries: Mapping[str, Entry], state: State, num_threads: int | None
    ):
        self._signature, self._state, self._threads = built.signature, state, num_threads
        self._program = built.signature.program
        fixed = {input_slot(name): array for name, array in state.arrays.items()}
        self.executor = Executor(built.steps, entries, fixed)
        self._exchanges = Exchanges.of(self._program, built.steps, built.signature.calls)
        self.carriers: Mapping[str, Communicator] = {}
        self.followers: Mapping[str, tuple[int, ...]] = {}
        self.pending = Pending(built.signature, built.nbytes)
        self._outputs = Results(self._program, built.signature.outputs, USER_ALIGNMENT)
        self._gradients = Results(self._program, built.signature.gradients, USER_ALIGNMENT)
        self._cotangents = Cotangents(built.signature)
        self._given = {
            FORWARD: _Given(self._program, built.signature.arguments),
            BACKWARD: _Given(self._program, built.signature.cotangents),
        }
        self._steps = built.steps
        self._spans = {call.name: call for call in built.signature.calls}

    def forward(self, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Run the program; see `Module.forward`."""
        values = in_order(self._signature, args, named)
        slots, write_backs = self._prepare(FORWARD, values)
        check_labels(self._signature, slots)
        as_torch = any(is_torch(v) for v in values)
        slots |= self._outputs.memory(as_torch)
        kept = self.pending.begin(values, slots, self._state.changes, as_torch)
        try:
            exchange = self._exchanges.begun(self.carriers, agree=True)
            span = self._spans[FORWARD]
            self._run(Memory(kept.frame.arena, slots, exchange), span.start, span.stop)
            self.followers = exchange.followers if exchange else {}
            results = self._outputs.handed_out(slots, as_torch)
            for write_back in write_backs:
                write_back()
        except BaseException:
            self.pending.pool.give(kept.frame)
            raise
        if BACKWARD in self._spans:
            self.pending.end(kept, bool(write_backs))
        else:
            self.pending.pool.give(kept.frame)
        return self._packed(results)

    def backward(
        self,
        grad_outputs: Sequence[Any],
        call: Call | None,
        out: Mapping[str, Any] | None,
        accumulate: bool,
        retain: bool,
    ) -> dict[str, Any]:
        """Run its gradient; see `Module.backward`. What is refused is refused before it runs."""
        if accumulate and out is None:
            hint = "backward(..., out={'weight': array}, accumulate=True)"
            raise CallError(f"{self._program}: accumulate onto what?", hint=hint)
        begun, destinations = self._begun(grad_outputs, call, out, accumulate, retain)
        self.advance(begun)
        slots, as_torch = begun.memory.slots, begun.as_torch
        return self._by_name(self._gradients.handed_out(slots, as_torch, destinations, accumulate))

    def begin_backward(
        self, grad_outputs: Sequence[Any], call: Call | None, retain: bool
    ) -> tuple[Backward, dict[str, Any]]:
        """Begin to run it; see `Module.begin_backward`."""
        begun, _ = self._begun(grad_outputs, call, None, False, retain)
        results = self._gradients.handed_out(begun.memory.slots, begun.as_torch)
        return begun, self._by_name(results)

    def advance(self, begun: Backward, stop: int | None = None) -> None:
        """Run its steps up to one that is not to run yet; all of them by default."""
        span = self._spans[BACKWARD]
        stop = span.stop if stop is None else stop
        if begun.step >= stop or begun.is_over:
            return
        start, begun.step = begun.step, stop
        try:
            if start > span.start:
                self._check_loans(begun, start, stop)
            self._run(begun.memory, start, stop)
        except BaseException:
            begun.end()
            raise
        if stop == span.stop:
            begun.end()

    def _check_loans(self, begun: Backward, start: int, stop: int) -> None:
        """Refuse what was changed since the steps before, where these read it; find what moved."""
        read = {o.slot for step in self._steps[start:stop] for o in step.operands}
        loans = [loan for loan in begun.loans if input_slot(loan.name) in read]
        for loan in loans:
            loan.check(self._program)
        begun.memory.slots.update(_moved(loans, begun.memory.slots))

    def _by_name(self, results: Sequence[Any]) -> dict[str, Any]:
        names = (spec.name for spec in self._signature.gradients)
        return dict(zip(names, results, strict=True))

    def _begun(
        self,
        grad_outputs: Sequence[Any],
        call: Call | None,
        out: Mapping[str, Any] | None,
        accumulate: bool,
        retain: bool,
    ) -> tuple[Backward, Mapping[str, Destination]]:
        call, kept = self.pending.find(call)
        self._check_unchanged(kept)
        given = self._cotangents.in_order(grad_outputs)
        cotangents, _ = self._prepare(BACKWARD, given)
        destinations = self._gradients.destinations(out)
        as_torch = kept.as_torch or any(is_torch(v) for v in grad_outputs)
        slots = {**kept.slots, **_moved(kept.loans, kept.slots), **cotangents}
        slots |= self._gradients.memory(as_torch, destinations, accumulate, slots.values())
        exchange = self._exchanges.begun(self.carriers, agree=False)
        # It writes over what it has read: a call that goes on waiting lends it a copy.
        frame = self.pending.twin(kept) if retain else self.pending.claim(call).frame
        memory = Memory(frame.arena, slots, exchange)
        start = self._spans[BACKWARD].start
        begun = Backward(self.pending.pool, frame, memory, start, kept.loans, as_torch)
        return begun, destinations

    def check_differentiated(self) -> None:
        """Refuse a program that has no ``backward``.

        Raises:
            CallError: naming it.
        """
        if BACKWARD not in self._spans:
            hint = "bngen.build(..., grad=True)"
            raise CallError(f"{self._program}: built without gradients", hint=hint)

    def _check_unchanged(self, kept: Kept) -> None:
        changed = self._state.changed_since(kept.changes, self._spans[BACKWARD].reads)
        if changed is not None:
            raise CallError(
                f"{self._program}: {changed!r}, which backward reads, was changed by "
                "load_state_dict or init after the forward call",
                hint="call mod.forward(...) again",
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of ranks that values are exchanged in."""
        return self._exchanges.groups

    def _run(self, memory: Memory, start: int, stop: int) -> None:
        with threads.using(self._threads or 0):
            self.executor.run(memory, start, stop)

    def _prepare(
        self, name: str, values: Sequence[Any]
    ) -> tuple[dict[str, Buffer], list[WriteBack]]:
        given = self._given[name]
        buffers, write_backs = given.arguments.prepared(values)
        return dict(zip(given.slots, buffers, strict=True)), write_backs

    def _packed(self, results: list[Any]) -> Any:
        named = self._signature.named_outputs
        labels = [spec.name for spec in self._signature.outputs] if named else ()
        return handed_out(results, labels, self._signature.tuple_output)


def _moved(loans: Sequence[Loan], slots: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """Memory of the caller's that lies elsewhere than it did, by slot."""
    found = [(input_slot(loan.name), loan) for loan in loans if loan.has_moved()]
    return {slot: loan.anew(slots[slot]) for slot, loan in found}
