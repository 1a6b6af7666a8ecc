"""One call of the tuner: a program's kernels one by one, each kept as soon as it is known.

In: a program, a target, the records so far and their file. Out: the new records; the file holds
each before it is given, so that an interrupt loses one kernel at most.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bngen.runtime import threads as thread_pool
from bngen.scheduling.knobs import Knobs
from bngen.target.parse import Target
from bngen.tuning import records, search
from bngen.tuning.lone import LoneKernel
from bngen.tuning.records import Record
from bngen.version import __version__


def tune_into(
    path: Path,
    program: Any,
    wrt: Sequence[str],
    target: Target,
    fusion: str,
    found: dict[str, Record],
    trials: int,
    threads: int | None,
    progress: Callable[[int, int, str], None],
) -> Iterator[Record]:
    """Tune the kernels of a program's training step.

    Args:
        path: the file of records, written anew with each that comes.
        program: what is trained.
        wrt: names of what it is trained by.
        target: this machine.
        fusion: the level.
        found: records so far by digest; what comes is added, and what other tuners find meanwhile.
        trials: candidates for each kernel.
        threads: that they run on; all of the machine when None.
        progress: called with how many kernels of how many are behind, and the best so far.
    """
    work = search.work_of(program, target, fusion, wrt)
    threads = threads or thread_pool.num_threads()
    place = {job.id: i for i, job in enumerate(work)}

    def report(job: search.Job, done: int, total: int, best: search.Found) -> None:
        gain = best.baseline / best.seconds
        name = f"{job.strategy.kind} {done}/{total} best {gain:.2f}x {1e6 * best.seconds:.0f}us"
        progress(place[job.id], len(work), name)

    def compile(job: search.Job, knobs: Knobs) -> LoneKernel:
        return search.compile_candidate(job, target, knobs, threads)

    versions = {"bngen": __version__, "apache-tvm": importlib.metadata.version("apache-tvm")}
    own: set[str] = set()
    registers = target.machine.traits.vector_registers
    for record in search.tune(work, dict(found), trials, threads, registers, compile, report):
        found[record.id] = record
        own.add(record.id)
        records.add(path, found, own, versions)
        yield record
