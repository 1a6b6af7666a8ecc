"""The threads that run compiled kernels: one pool, shared with PyTorch.

In: BNGEN_NUM_THREADS, `set_num_threads`, or `using` around a call. Out: compiled parallel loops
that run on an OpenMP runtime, the one PyTorch uses where PyTorch is installed.

TVM has a pool of its own, but two pools that spin while they wait fight for the same CPUs: a step
that alternates between a kernel and a PyTorch operation pays for it each time. So `threads.c`
implements TVM's launch function on OpenMP. It is compiled at first use; without a C compiler TVM's
pool serves, told to use all CPUs and not to spin.

Compiled modules look the launch function up when they are loaded: call `install` before that.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import operator
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bngen.errors import BngenError, ToolchainError
from bngen.options import environment
from bngen.runtime import host, native, toolchain

_LOG = logging.getLogger(__name__)
_MOST_THREADS = 4096
_OPENMP_SYMBOLS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads")
_OWN_SYMBOLS = (
    "bngen_bind", "bngen_set_default_threads", "bngen_use_threads", "bngen_num_threads",
    "bngen_ever_parallel", "bngen_after_fork", "TVMBackendParallelLaunch",
    "TVMBackendParallelBarrier",
)  # fmt: skip
_OPENMP_NAMES = ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so")


class _Pool(Protocol):
    """What both pools can do; a count of 0 stands for the default."""

    name: str

    def attach(self) -> None:
        """Makes modules that are loaded from now on use this pool."""

    def set_default(self, count: int) -> None:
        """Sets the count of every thread that has not chosen its own."""

    def use(self, count: int) -> int:
        """Sets the calling thread's own count; returns the one before."""

    def num_threads(self) -> int:
        """The count that a kernel called now would use."""


_lock = threading.Lock()
_pool: _Pool | None = None


def install() -> str:
    """Makes sure that modules loaded from now on run on the right pool.

    Cheap when repeated; call it before each load, since importing TVM registers TVM's own pool.

    Returns:
        The pool in use: ``openmp (<library>)`` or ``tvm``.

    Raises:
        BngenError: if BNGEN_NUM_THREADS is no count of threads.
    """
    pool = _installed()
    pool.attach()
    return pool.name


def num_threads() -> int:
    """How many threads a kernel called here and now would use."""
    return _installed().num_threads()


def set_num_threads(count: int) -> None:
    """Sets how many threads kernels use, wherever `using` does not say otherwise.

    Raises:
        BngenError: unless `count` is a whole number, at least 1.
    """
    _installed().set_default(checked_count(count))


def checked_count(count: object) -> int:
    """`count` as an int, if it is a sensible number of threads.

    Raises:
        BngenError: if it is not.
    """
    try:
        number = operator.index(count)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if isinstance(count, bool) or not 1 <= number <= _MOST_THREADS:
        raise BngenError(
            f"cannot run on {count!r} threads", hint=f"give a whole number, 1 to {_MOST_THREADS}"
        )
    return number


class using:
    """``with using(n): ...`` runs the calling thread's kernels on `n` threads; 0 is the default.

    Meant for every call of a module, hence cheap: `n` is not checked (see `checked_count`), and
    `install` must have been called before.
    """

    __slots__ = ("_before", "_count")

    def __init__(self, count: int):
        """Only remembers the count; nothing is switched before the block is entered."""
        self._count = count

    def __enter__(self) -> None:
        """Switches to the count."""
        self._before = _use(self._count)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Switches back."""
        _use(self._before)


def _use(count: int) -> int:
    """Bound to the pool's own function, without a layer between, once there is a pool."""
    return _installed().use(count)


def default_threads() -> int:
    """BNGEN_NUM_THREADS, else OMP_NUM_THREADS, else every CPU this process may use.

    The 1 that torchrun sets is nobody's wish: among its processes each has its share of the CPUs.
    """
    own = environment("threads")
    if own is not None:
        return checked_count(own)
    # The first number of OMP_NUM_THREADS is that of the outermost loops.
    shared = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if shared in ("", "1") and (share := host.share_of_cpus()) is not None:
        return share
    # What is no number of threads is nobody's wish, as OpenMP's own runtimes have it.
    sensible = shared.isdecimal() and len(shared) < 9 and 1 <= int(shared) <= _MOST_THREADS
    if shared and not sensible:
        _LOG.warning(
            "OMP_NUM_THREADS=%s is passed over: it is no number from 1 to %d",
            shared[:40], _MOST_THREADS,
        )  # fmt: skip
    return int(shared) if sensible else host.cpu_count()


def worker_stack() -> int:
    """Bytes of stack that OMP_STACKSIZE asks for, of each of OpenMP's threads; 0 if it does not."""
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        found = re.fullmatch(r"\s*(\d{1,15})\s*([bkmgBKMG]?)\s*", os.environ.get(name, ""))
        if found:
            return int(found[1]) << {"b": 0, "k": 10, "m": 20, "g": 30}[found[2].lower() or "k"]
    return 0


def _installed() -> _Pool:
    global _pool, _use
    if _pool is None:
        with _lock:
            if _pool is None:
                pool = _make_pool()
                _use = pool.use
                _pool = pool
    return _pool


def _make_pool() -> _Pool:
    count = default_threads()
    try:
        return _OpenMPPool(count)
    except ToolchainError as error:
        _LOG.warning("kernels run on TVM's thread pool instead of OpenMP's: %s", error)
        return _TVMPool(count)


# --- OpenMP -----------------------------------------------------------------------------------


class _OpenMPPool:
    """`threads.c`, bound to an OpenMP runtime."""

    def __init__(self, count: int):
        self._runtime = _find_openmp()
        self.name = f"openmp ({_origin(self._runtime.GOMP_parallel)})"
        source = Path(__file__).with_suffix(".c")
        # PyDLL: these functions only set or read a variable, quicker than releasing the GIL.
        self._library = library = toolchain.shared_library(source, ctypes.PyDLL, _OWN_SYMBOLS)
        self._ffi = native.ffi()
        entries = [native.address(getattr(self._runtime, name)) for name in _OPENMP_SYMBOLS]
        entries.append(native.address(self._ffi.TVMFFIErrorSetRaisedFromCStr))
        library.bngen_bind(*map(ctypes.c_void_p, entries))
        library.bngen_set_worker_stack(ctypes.c_size_t(worker_stack()))
        self.use: Callable[[int], int] = library.bngen_use_threads
        self.num_threads: Callable[[], int] = library.bngen_num_threads
        self.set_default(count)
        os.register_at_fork(after_in_child=self._after_fork)

    def attach(self) -> None:
        native.runtime()  # registers TVM's own pool when it is loaded, so not after this
        for name in ("TVMBackendParallelLaunch", "TVMBackendParallelBarrier"):
            place = ctypes.c_void_p(native.address(getattr(self._library, name)))
            if self._ffi.TVMFFIEnvModRegisterContextSymbol(f"__{name}".encode(), place):
                raise BngenError(f"TVM refuses to take {name} from bngen")

    def set_default(self, count: int) -> None:
        self._library.bngen_set_default_threads(count)

    def _after_fork(self) -> None:
        # libgomp waits for ever for the threads of a parent that has used it, be it through us or
        # through PyTorch; a forked child that computes on one thread beats one that hangs.
        if self._library.bngen_ever_parallel() or "torch" in sys.modules:
            self._library.bngen_after_fork()


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _origin(function: Any) -> str:
    """Path of the library that a function was found in."""
    info = _SymbolInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return os.path.realpath(os.fsdecode(info.file)) if found else "unknown"


def _find_openmp() -> ctypes.CDLL:
    """The OpenMP runtime to share, in the order of who else is going to use it.

    Raises:
        ToolchainError: when there is none.
    """
    for load in _openmp_candidates():
        try:
            runtime = load()
            if all(hasattr(runtime, name) for name in _OPENMP_SYMBOLS):
                return runtime
        except OSError:
            continue
    raise ToolchainError(
        f"no OpenMP runtime: {', '.join(_OPENMP_NAMES)} not found", hint="install libgomp1"
    )


def _openmp_candidates() -> Iterator[Callable[[], ctypes.CDLL]]:
    for path in _mapped("libtorch_cpu.so"):
        # Searching through libtorch_cpu finds whatever its own calls are bound to.
        yield lambda path=path: ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    for path in _bundled_with_torch():
        yield lambda path=path: ctypes.CDLL(str(path))
    for name in _OPENMP_NAMES:
        yield lambda name=name: ctypes.CDLL(name)


def _mapped(name: str) -> list[str]:
    """Paths of the libraries of that file name in this process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if line.endswith(name))
    return sorted({path for path in paths if Path(path).name == name})


def _bundled_with_torch() -> list[Path]:
    """PyTorch's OpenMP runtime where PyTorch is installed but not imported yet."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return []
    package = Path(found.origin).parent
    folders = (package / "lib", package.parent / "torch.libs")
    return [p for f in folders for stem in ("libgomp", "libiomp5") for p in f.glob(f"{stem}*.so*")]


# --- TVM's own pool ---------------------------------------------------------------------------


class _TVMPool:
    """TVM's pool, told to use as many threads as we want, not to pin them and not to spin."""

    name = "tvm"

    def __init__(self, count: int):
        # Read when a thread's pool starts; TVM's own default is half of the CPUs, pinned.
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
        os.environ["TVM_NUM_THREADS"] = str(max(count, host.cpu_count()))
        native.runtime()  # which has it
        self._configure = native.Function("runtime.config_threadpool")
        self._default = count
        # TVM has a pool for each thread that calls it.
        self._local = threading.local()

    def attach(self) -> None:
        self._apply()

    def set_default(self, count: int) -> None:
        self._default = count
        self._apply()

    def use(self, count: int) -> int:
        before = getattr(self._local, "chosen", 0)
        self._local.chosen = count
        self._apply()
        return before

    def num_threads(self) -> int:
        return getattr(self._local, "chosen", 0) or self._default

    def _apply(self) -> None:
        wanted = self.num_threads()
        if getattr(self._local, "applied", None) != wanted:
            self._configure(1, wanted)
            self._local.applied = wanted
