"""The code of a bundle, loaded: kernels by symbol, ready to be called.

In: a `Bundle`. Out: its entries, after the machine was found to be one that can run them. A bundle
without a library for this system is linked here, which takes a C compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from bngen.errors import ToolchainError
from bngen.runtime import host, native, tiles, toolchain
from bngen.runtime import threads as thread_pool
from bngen.runtime.bundle import Bundle
from bngen.runtime.native import Entry

_LOG = logging.getLogger(__name__)


def entries(bundle: Bundle) -> Mapping[str, Entry]:
    """The kernels of a bundle by symbol, ready to be called.

    Raises:
        TargetError: when this machine cannot run them.
        ToolchainError: when they can be neither loaded nor linked.
    """
    bundle.target.check_runs_here(bundle.program)
    if any(feature.startswith(host.TILES) for feature in bundle.target.features):
        tiles.ask(bundle.program)
    # Before any code is loaded: what is loaded keeps the pool that it finds.
    thread_pool.install()
    symbols = {step.symbol for step in bundle.built.kernels}
    if not symbols:
        return {}
    if bundle.library is not None:
        try:
            return native.load(bundle.library, symbols)
        except ToolchainError as error:
            _LOG.info("the library of %s is linked again: %s", bundle.program, error)
    return native.load(toolchain.link(bundle.objects.values()), symbols)
