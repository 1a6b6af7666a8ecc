"""What callers may pass, when it is shared and when copied, and what they are told otherwise."""

import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bngen.errors import CallError
from bngen.runtime.argspec import ArgSpec
from bngen.runtime.arguments import Arguments, deliver, prepare
from bngen.runtime.tensors import is_torch

X = ArgSpec("x", (4, 6), "float32")
STATE = ArgSpec("running_mean", (6,), "float32", inplace=True)


def arange(shape, dtype="float32"):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def aligned(shape, dtype="float32", offset=0):
    """Memory whose address is `offset` bytes past a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    array = raw[start : start + size].view(dtype).reshape(shape)
    array[...] = arange(shape, dtype)
    return array


def is_kernel_ready(array, alignment):
    whole = type(array) is np.ndarray and array.flags.c_contiguous
    return whole and address(array) % alignment == 0


def address(array):
    return array.ctypes.data


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


# --- NumPy ------------------------------------------------------------------------------------


def test_a_plain_array_is_shared():
    array = aligned((4, 6))
    tensor, write_back = prepare(array, X)
    assert address(tensor) == array.ctypes.data and write_back is None
    array = aligned((4, 6), offset=4)
    assert address(prepare(array, X, alignment=4)[0]) == array.ctypes.data


def frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


AWKWARD = {
    "misaligned": lambda: aligned((4, 6), offset=4),
    "off its element": lambda: aligned((4, 6), offset=1),
    "sliced": lambda: arange((8, 6))[2:6],
    "strided": lambda: arange((4, 12))[:, ::2],
    "fortran": lambda: np.asfortranarray(arange((4, 6))),
    "transposed": lambda: arange((6, 4)).T,
    "negative": lambda: arange((4, 6))[::-1, ::-1],
    "read-only": lambda: frozen(arange((4, 6))),
    "read-only and strided": lambda: frozen(arange((4, 12)))[:, ::2],
    "broadcast": lambda: np.broadcast_to(arange((6,)), (4, 6)),
    "byte-swapped": lambda: arange((4, 6)).astype(">f4"),
    "bytes": lambda: np.frombuffer(arange((4, 6)).tobytes(), np.float32).reshape(4, 6),
    "subclass": lambda: arange((4, 6)).view(np.matrix),
}


@pytest.mark.parametrize("make", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("alignment", [4, 64])
def test_awkward_arrays_simply_work(make, alignment):
    array = make()
    before = array.copy()
    tensor, write_back = prepare(array, X, alignment)
    assert write_back is None and is_kernel_ready(tensor, alignment)
    np.testing.assert_array_equal(tensor, before)
    np.testing.assert_array_equal(array, before)


def test_a_read_only_array_is_shared_and_kept_alive():
    array = np.frombuffer(bytes(256), np.float32)
    array = array[-array.ctypes.data % 64 // 4 :][:24].reshape(4, 6)
    place = address(array)
    tensor, _ = prepare(array, X)
    assert address(tensor) == place
    count = sys.getrefcount(array)
    del tensor
    assert sys.getrefcount(array) == count - 1, "the tensor held the array"


WRITABLE = ["misaligned", "sliced", "strided", "fortran", "transposed", "negative", "byte-swapped"]


@pytest.mark.parametrize("kind", WRITABLE)
def test_in_place_arguments_take_the_new_value(kind):
    array = AWKWARD[kind]()
    spec = ArgSpec("state", (4, 6), "float32", inplace=True)
    tensor, write_back = prepare(array, spec)
    new = -tensor.copy() - 1
    tensor[...] = new
    if write_back is not None:
        write_back()
    np.testing.assert_array_equal(array, new)


def test_an_in_place_argument_is_shared_when_it_can_be():
    array = aligned((6,))
    tensor, write_back = prepare(array, STATE)
    assert write_back is None
    tensor[0] = 42
    assert array[0] == 42


dtypes = st.sampled_from(["float32", "float64", "int32", "int64", "uint8", "bool"])


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple),
    dtype=dtypes,
    data=st.data(),
    alignment=st.sampled_from([8, 64]),
    inplace=st.booleans(),
)
def test_any_view_of_any_array(shape, dtype, data, alignment, inplace):
    steps = data.draw(st.tuples(*[st.sampled_from([1, 2, -1, -2]) for _ in shape]))
    order = data.draw(st.permutations(range(len(shape))))
    # `base` has its axes in `order`; cutting and reversing it and undoing `order` gives `shape`.
    full = tuple(shape[axis] * abs(steps[axis]) for axis in order)
    base = (arange(full, "int64") % 2 if dtype == "bool" else arange(full, "int64")).astype(dtype)
    cut = base[..., *(slice(None, None, steps[axis]) for axis in order)]
    array = cut.transpose(np.argsort(order)) if shape else cut
    before = array.copy()
    tensor, write_back = prepare(array, ArgSpec("a", shape, dtype, inplace), alignment)
    assert is_kernel_ready(tensor, alignment) and tuple(tensor.shape) == shape
    np.testing.assert_array_equal(tensor, before)
    if inplace:
        tensor[...] = 1
        if write_back is not None:
            write_back()
        assert (array == 1).all()
    else:
        assert write_back is None


# --- PyTorch ----------------------------------------------------------------------------------

TENSORS = {
    "plain": lambda t: t.arange(24.0).reshape(4, 6),
    "requires grad": lambda t: t.arange(24.0).reshape(4, 6).requires_grad_(),
    "parameter": lambda t: t.nn.Parameter(t.arange(24.0).reshape(4, 6)),
    "no leaf": lambda t: t.arange(24.0).reshape(4, 6).requires_grad_() * 2,
    "misaligned": lambda t: t.arange(25.0)[1:].reshape(4, 6),
    "strided": lambda t: t.arange(48.0).reshape(4, 12)[:, ::2],
    "transposed": lambda t: t.arange(24.0).reshape(6, 4).T,
    "expanded": lambda t: t.arange(6.0).expand(4, 6),
    "negated view": lambda t: t._neg_view(t.arange(24.0).reshape(4, 6)),
}
SHARED = ["plain", "requires grad", "parameter", "no leaf"]


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_tensors_simply_work(make, torch):
    value = make(torch)
    with torch.no_grad():
        tensor, write_back = prepare(value, X)
    assert write_back is None and is_kernel_ready(tensor, 64)
    np.testing.assert_array_equal(tensor, value.detach().resolve_neg().numpy())


@pytest.mark.parametrize("kind", SHARED)
def test_plain_tensors_are_shared(kind, torch):
    value = TENSORS[kind](torch)
    with torch.no_grad():
        assert address(prepare(value, X)[0]) == value.data_ptr()


def test_channels_last_is_copied_unless_it_is_the_same_thing(torch):
    spec = ArgSpec("x", (2, 3, 4, 5), "float32")
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensor, _ = prepare(value, spec)
    assert is_kernel_ready(tensor, 64) and address(tensor) != value.data_ptr()
    np.testing.assert_array_equal(tensor, value.numpy())
    weight = torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last)
    tensor, _ = prepare(weight, ArgSpec("w", (2, 3, 1, 1), "float32"))
    assert address(tensor) == weight.data_ptr()


@pytest.mark.parametrize("kind", [k for k in TENSORS if k not in ("expanded", "no leaf")])
def test_in_place_tensors_take_the_new_value(kind, torch):
    value = TENSORS[kind](torch)
    with torch.no_grad():
        tensor, write_back = prepare(value, ArgSpec("state", (4, 6), "float32", inplace=True))
    tensor[...] = 7
    write_back()
    assert (value == 7).all()


def test_autograd_is_told_of_an_update(torch):
    weight = torch.ones(6, requires_grad=True)
    held = torch.arange(6.0)
    product = (weight * held).sum()
    tensor, write_back = prepare(held, STATE, alignment=1)
    assert address(tensor) == held.data_ptr()
    tensor[...] = 7
    write_back()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_an_update_of_an_inference_tensor(torch):
    with torch.inference_mode():
        held = torch.arange(6.0)
    tensor, write_back = prepare(held, STATE, alignment=1)
    tensor[...] = 7
    write_back()
    assert (held == 7).all()


def test_detached_results_are_refused_and_not_handed_out(torch):
    """`requires_grad` would be lost: PyTorch would train without what lies behind the module."""
    for kind in ("requires grad", "parameter", "no leaf"):
        value = TENSORS[kind](torch)
        with pytest.raises(CallError, match=r"'x' requires grad, but autograd .*\.detach\(\)"):
            prepare(value, X)
        assert prepare(value.detach(), X)[1] is None


def test_results_are_delivered_in_the_callers_kind(torch):
    array = arange((2, 3))
    assert deliver(array, False) is array
    tensor = deliver(array, True)
    assert isinstance(tensor, torch.Tensor) and tensor.data_ptr() == array.ctypes.data
    assert is_torch(tensor) and is_torch(torch.nn.Parameter(tensor)) and not is_torch(array)


def test_pytorch_is_not_imported_for_it():
    code = (
        "import sys, numpy as np, bngen.runtime.arguments as a;"
        "assert not a.is_torch(np.zeros(1)) and a.deliver(np.zeros(1), False).shape == (1,);"
        "assert 'torch' not in sys.modules and 'tvm_ffi' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- lists and numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, dtype",
    [
        (3, "int64"),
        (3, "float32"),
        (2.5, "float32"),
        (np.float64(2.5), "float32"),
        (np.int64(3), "int32"),
        (True, "bool"),
        ([1, 2, 3], "int64"),
        ([1, 2, 255], "uint8"),
        ([[1.5], [2.0]], "float32"),
        ((1, 2.5), "float64"),
    ],
    ids=repr,
)
def test_plain_numbers_take_the_declared_type(value, dtype):
    tensor, _ = prepare(value, ArgSpec("n", np.shape(value), dtype))
    assert str(tensor.dtype) == dtype
    np.testing.assert_array_equal(tensor, np.asarray(value))


def test_an_array_of_another_library_keeps_its_type():
    class Foreign:
        dtype = np.dtype("float64")

        def __array__(self, dtype=None, copy=None):
            return np.ones((4, 6), self.dtype)

    with pytest.raises(CallError, match="is float64, expected float32"):
        prepare(Foreign(), X)


# --- errors -----------------------------------------------------------------------------------

MAP = ArgSpec("x", (8, 64, 56, 40), "float32")

WRONG = [
    (np.zeros((4, 6)), X, "net: argument 'x' is float64, expected float32 (convert it: .astype("),
    (np.zeros((4, 6), "int32"), X, "is int32, expected float32"),
    (np.zeros((4, 7), "float32"), X, "has shape (4, 7), expected (4, 6)"),
    (np.zeros((6, 4), "float32"), X, "expected (4, 6) (reshape it)"),
    (np.zeros((24,), "float32"), X, "has rank 1, shape (24,); expected rank 2, shape (4, 6)"),
    (np.zeros((9, 6), "float32"), X, "build it with 9 in place of 4"),
    (np.zeros((8, 56, 40, 64), "float32"), MAP, "transpose it by (0, 3, 1, 2)"),
    (np.zeros((4, 6), object), X, "is object, expected float32"),
    (np.zeros((4, 6), "float16"), X, "is float16, expected float32"),
    (np.zeros((4, 6), [("a", "float32")]), X, "is void32, expected float32"),
    (np.zeros((4, 6), "M8[s]"), X, "is datetime64[s], expected float32"),
    (np.ma.masked_array(np.zeros((4, 6), "float32")), X, "is masked, and kernels would read"),
    ([[2**70] * 6] * 4, X, "is a list, expected float32[4, 6]"),
    ([[1e300] * 6] * 4, X, "holds numbers that float32 cannot hold"),
    ({1, 2}, X, "is a set, expected float32[4, 6]"),
    (None, X, "is a NoneType, expected float32[4, 6] (pass a NumPy array)"),
    ("weights", X, "is a str, expected float32[4, 6]"),
    ([[1.0], [1.0, 2.0]], X, "cannot become an array"),
    ([[1.0, 2.0]], X, "has shape (1, 2), expected (4, 6)"),
    (2.5, ArgSpec("seed", (), "int64"), "is float64, expected int64 (convert it: np.asarray("),
    ([1, 300], ArgSpec("y", (2,), "uint8"), "holds numbers that uint8 cannot hold"),
    (2, ArgSpec("mask", (), "bool"), "is int64, expected bool"),
    ([0.0] * 6, STATE, "is updated in place, which a list cannot be (pass a NumPy array)"),
    (frozen(np.zeros(6, "float32")), STATE, "updated in place, but it is read-only (pass a copy"),
]


@pytest.mark.parametrize("value, spec, message", WRONG, ids=[w[2] for w in WRONG])
def test_a_wrong_argument_is_one_line_with_a_remedy(value, spec, message):
    with pytest.raises(CallError) as caught:
        prepare(value, spec, program="net")
    text = str(caught.value)
    assert text.startswith(f"net: argument {spec.name!r} ") and message in text
    assert "\n" not in text and caught.value.hint


WRONG_TENSORS = {
    "is float64, expected float32 (convert it: .to(torch.float32))": lambda t: t.zeros(
        4, 6
    ).double(),
    "is float16, expected float32": lambda t: t.zeros(4, 6).half(),
    "has shape (4, 7), expected (4, 6)": lambda t: t.zeros(4, 7),
    "is on meta, but bngen's code runs on the CPU (move it": lambda t: t.zeros(4, 6, device="meta"),
    "expected a dense tensor (call .to_dense())": lambda t: t.zeros(4, 6).to_sparse(),
}


@pytest.mark.parametrize("message", WRONG_TENSORS)
def test_a_wrong_tensor_is_one_line_with_a_remedy(message, torch):
    with pytest.raises(CallError) as caught:
        prepare(WRONG_TENSORS[message](torch), X)
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Subclass:
    """Made where PyTorch is there: subclasses that only override functions have memory."""

    def __new__(cls, torch):
        kind = type("Subclass", (torch.Tensor,), {})
        return torch.arange(24.0).reshape(4, 6).as_subclass(kind)


def test_a_tensor_of_a_subclass(torch):
    tensor, _ = prepare(Subclass(torch), X)
    np.testing.assert_array_equal(tensor, arange((4, 6)))


def without_storage(torch):
    tensor = torch.zeros(4, 6)
    tensor.untyped_storage().resize_(0)
    return tensor


def fake(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.zeros(4, 6))


def masked(torch):
    from torch.masked import masked_tensor

    return masked_tensor(torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:The PyTorch API")
@pytest.mark.parametrize(
    "make, what",
    [
        (without_storage, "without memory of its own"),
        (fake, "without memory of its own"),
        (masked, "without memory of its own"),
        (lambda t: t.nested.nested_tensor([t.zeros(6)] * 4), "is a nested tensor"),
        (lambda t: t.zeros(4, 6).to_mkldnn(), "expected a dense tensor"),
        (lambda t: t.zeros(4, 6, dtype=t.cfloat).conj(), "is complex64, expected float32"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_tensor_without_dense_memory(make, what, inplace, torch):
    with pytest.raises(CallError, match=what):
        prepare(make(torch), ArgSpec("x", (4, 6), "float32", inplace), alignment=1)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_a_tensor_inside_a_transformation(transform, torch):
    def traced(x):
        with pytest.raises(CallError, match="without memory of its own"):
            prepare(x, ArgSpec("x", tuple(x.shape), "float32"))
        return x.sum()

    value = torch.ones(4, 6)
    torch.vmap(traced)(value) if transform == "vmap" else torch.func.grad(traced)(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.lib.stride_tricks.as_strided(np.zeros(32, np.float32), (4, 6), (4, 4)),
        lambda: np.lib.stride_tricks.as_strided(np.zeros(32, np.float32), (4, 6), (0, 4)),
        lambda: np.lib.stride_tricks.as_strided(np.zeros(32, np.float32)[8:], (4, 6), (4, -4)),
        lambda: np.lib.stride_tricks.as_strided(np.zeros(32, np.float32), (4, 6), (24, 2)),
    ],
)
def test_an_array_that_overlaps_itself_cannot_be_updated(make):
    spec = ArgSpec("state", (4, 6), "float32", inplace=True)
    with pytest.raises(CallError, match="its elements share memory"):
        prepare(make(), spec, alignment=1)
    assert prepare(make(), X)[1] is None


def test_an_expanded_tensor_cannot_be_updated(torch):
    with pytest.raises(CallError, match="its elements share memory"):
        prepare(torch.zeros(1).expand(6), STATE)


# --- whole calls ------------------------------------------------------------------------------


def test_all_arguments_of_a_call():
    x, state = aligned((4, 6)), arange((12,))[::2]
    (first, second), write_backs = Arguments("net", [X, STATE]).prepared([x, state])
    assert first.address == x.ctypes.data
    second.array[...] = 5
    assert len(write_backs) == 1
    write_backs[0]()
    assert (state == 5).all()


def test_memory_that_is_updated_must_be_passed_once():
    other = ArgSpec("running_var", (6,), "float32", inplace=True)
    reader = ArgSpec("bias", (6,), "float32")
    buffer = aligned((32,))

    def check(specs, values):
        Arguments("net", specs, alignment=4).prepared(values)

    with pytest.raises(CallError, match="'running_mean' and 'running_var' share memory"):
        check([STATE, other], [buffer[:6], buffer[:6]])
    with pytest.raises(CallError, match="'running_mean' is updated in place"):
        check([reader, STATE], [buffer[:6], buffer[3:9]])
    with pytest.raises(CallError, match="share memory"):
        # The reader in the middle does not hide the long one that is written.
        long = ArgSpec("long", (20,), "float32", inplace=True)
        middle = ArgSpec("middle", (2,), "float32")
        check([long, middle, reader], [buffer[:20], buffer[24:26], buffer[14:20]])
    check([STATE, other, reader], [buffer[:6], buffer[6:12], buffer[12:18]])
    check([reader, reader], [buffer[:6], buffer[:6]])


PAIRS = {
    "rows": lambda m: (m[::2], m[1::2]),
    "columns": lambda m: (m[:, ::2], m[:, 1::2]),
    "the same rows": lambda m: (m[::2], m[::2]),
    "the same columns": lambda m: (m[:, ::2], m[:, ::2]),
    "some columns": lambda m: (m[:, 0:8:2], m[:, 4:12:2]),
    "other columns": lambda m: (m[:, 0:8:2], m[:, 5:13:2]),
    "reversed": lambda m: (m[::2], m[::-2][::-1][:6]),
    "transposed": lambda m: (m[:6, :6], m[:6, :6].T),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_views_of_one_matrix_are_refused_only_where_they_meet(kind, written, library, torch):
    matrix = np.zeros((12, 14), np.float32)
    views = PAIRS[kind](matrix)
    if library == "torch" and kind != "reversed":
        views = PAIRS[kind](torch.from_numpy(matrix))
    specs = [
        ArgSpec(name, tuple(v.shape), "float32", i == written)
        for i, (name, v) in enumerate(zip("ab", views, strict=True))
    ]
    if np.shares_memory(*map(np.asarray, views)):
        with pytest.raises(CallError, match=f"'{'ab'[written]}' is updated in place"):
            Arguments("net", specs, alignment=1).prepared(views)
    else:
        Arguments("net", specs, alignment=1).prepared(views)


def test_what_cannot_be_told_apart_in_time_is_refused():
    """Whether two such views meet is a knapsack problem; nobody waits for its solution."""
    memory = np.zeros(1 << 20, np.uint8)
    steps = [2 * 3**k + 2 for k in range(9)]
    views = [np.lib.stride_tricks.as_strided(memory[start:], (3,) * 9, steps) for start in (0, 1)]
    specs = [ArgSpec("a", (3,) * 9, "uint8", True), ArgSpec("b", (3,) * 9, "uint8")]
    with pytest.raises(CallError, match="share memory"):
        Arguments("net", specs, alignment=1).prepared(views)


def test_a_tensor_and_the_array_it_was_made_from(torch):
    array = np.zeros(6, np.float32)
    reader = ArgSpec("bias", (6,), "float32")
    with pytest.raises(CallError, match="share memory"):
        Arguments("net", [STATE, reader], alignment=1).prepared([torch.from_numpy(array), array])
    with pytest.raises(CallError, match="share memory"):
        Arguments("net", [STATE, reader], alignment=1).prepared([array, memoryview(array)])


# --- one call after another -----------------------------------------------------------------------

LATER = {
    "of another shape": (lambda t: t.reshape(6, 4), "has shape"),
    "of another type": (lambda t: t.view(sys.modules["torch"].int32), "is int32"),
    "one that wants a gradient": (lambda t: t.requires_grad_(), "requires grad"),
    "one without its memory": (lambda t: (t.untyped_storage().resize_(0), t)[1], "without memory"),
}


@pytest.mark.parametrize("kind", LATER)
def test_what_was_usable_once_is_looked_at_again(kind, torch):
    change, message = LATER[kind]
    arguments, tensor = Arguments("net", [X], alignment=1), torch.zeros(4, 6)
    for _ in range(2):
        assert arguments.prepared([tensor])[0][0].address == tensor.data_ptr()
    with pytest.raises(CallError, match=message):
        arguments.prepared([change(tensor)])


def test_other_elements_at_the_same_address_are_read_as_they_lie(torch):
    arguments, memory = Arguments("net", [X], alignment=1), torch.arange(48.0)
    dense = memory[:24].reshape(4, 6)
    views = (dense, memory.as_strided((4, 6), (12, 2)), dense, torch._neg_view(dense), dense)
    for view in views:
        ((found,), _) = arguments.prepared([view])
        np.testing.assert_array_equal(found.array, view.resolve_neg().numpy())
        assert (found.address == memory.data_ptr()) == (view is dense)


def test_nothing_of_a_call_is_kept_alive(torch):
    arguments, tensor = Arguments("net", [X], alignment=1), torch.zeros(4, 6)
    arguments.prepared([tensor])
    arguments.prepared([tensor])
    gone = weakref.ref(tensor)
    del tensor
    assert gone() is None


def test_an_array_keeps_the_memory_that_its_tensor_gives_up(torch):
    arguments, tensor = Arguments("net", [X], alignment=1), torch.full((4, 6), 2.0)
    for _ in range(2):
        ((found,), _) = arguments.prepared([tensor])
    tensor.data = torch.zeros(4, 6)
    others = [torch.zeros(4, 6) for _ in range(8)]  # would lie there if it were free
    assert (found.array == 2).all() and len(others) == 8


def test_an_update_that_moves_onto_another_argument_is_refused(torch):
    reader = ArgSpec("bias", (6,), "float32")
    arguments = Arguments("net", [STATE, reader], alignment=1)
    state, bias = torch.zeros(6), torch.zeros(6)
    for _ in range(2):
        versions = state._version, bias._version
        _, write_backs = arguments.prepared([state, bias])
        for write_back in write_backs:
            write_back()
        assert (state._version, bias._version) == (versions[0] + 1, versions[1])
    with pytest.raises(CallError, match="share memory"):
        arguments.prepared([state, state])
    with pytest.raises(CallError, match="share memory"):
        arguments.prepared([state, state.numpy()])
