"""From a bundle, or the folder of one, to a module.

In: a `Bundle`, or the folder of one. Out: a `Module`. No compiler room is imported, and of TVM only
its runtime and its small ffi library; a bundle without a library for this system needs a C compiler
to link one.
"""

from __future__ import annotations

import os

from bngen.errors import BngenError
from bngen.runtime import threads as thread_pool
from bngen.runtime.bundle import Bundle
from bngen.runtime.entries import entries
from bngen.runtime.module import Module


def load(source: Bundle | str | os.PathLike[str], *, threads: int | None = None) -> Module:
    """Make a module of a bundle: no compiling, no PyTorch, no TVM but its runtime.

    The code in a bundle is code, as in a pickle: load only what you trust. What surrounds it is
    checked: digests of all files, and that no argument of a call lies beyond its memory.

    Args:
        source: a `Bundle`, or the folder that `Bundle.save` or ``bngen build`` wrote.
        threads: threads of a call; all CPUs of the process by default.

    Returns:
        The module; its parameters and buffers have no values yet.

    Raises:
        TargetError: when this machine is another than the bundle is for, naming the instruction
            sets that it lacks; before anything is linked or run.
        ToolchainError: for a folder that is damaged or none, and where there is neither a library
            in the bundle nor a C compiler to link one.
        BngenError: for a bundle of another version, or a number of threads that is none.
    """
    if threads is not None:
        thread_pool.checked_count(threads)
    if not isinstance(source, Bundle):
        if not isinstance(source, str | os.PathLike):
            raise BngenError(
                f"cannot load a {type(source).__name__}",
                hint="give a bundle, or the path of its folder",
            )
        source = Bundle.read(source)
    return Module(source, entries(source), num_threads=threads)
