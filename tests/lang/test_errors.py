"""What users are told: the whole text is pinned, and the line is theirs."""

import copy
import functools
import inspect
import random
import warnings

import numpy as np
import pytest
import torch

import bngen as bg
from bngen.lang import layers
from tests.lang.meaning import traced

X = bg.Tensor[8, 3, 8, 8]
MATRIX = bg.Tensor[4, 6]
LABELS = bg.Tensor[4, bg.int64]


def _message(fn, *types):
    """What tracing ``fn`` complains about, without the place, which must be this file."""
    with pytest.raises(bg.ProgramError) as caught:
        _ = bg.trace(fn, *types, name="f").graph
    where, _, what = str(caught.value).partition(": ")
    file, _, line = where.rpartition(":")
    assert file == __file__
    assert "\n" not in what
    code = fn.__code__
    assert int(line) in {code.co_firstlineno, *(at for *_, at in code.co_lines())}
    return what


_CONV_HINT = " (x is [N,C,H,W], weight [K,C/groups,R,S], bias [K])"
_BN_HINT = " (x is [N,C,...]; weight, bias and statistics are vectors [C])"
_POOL_HINT = " (x is [N,C,H,W]; choose a smaller window, more padding or a larger image)"
_ARRAY_HINT = " (arrays enter a program as arguments, bg.parameter or bg.buffer)"

CASES = [
    # --- shapes: the op, the shapes, what to try
    (
        lambda x, w: bg.conv2d(x, w), (X, bg.Tensor[4, 5, 3, 3]),
        "conv2d: x f32[8,3,8,8] has 3 channels in 1 group(s), so the weight's second axis must "
        "be 3, got f32[4,5,3,3]" + _CONV_HINT,
    ),
    (
        lambda x, w: bg.conv2d(x, w), (MATRIX, bg.Tensor[4, 5, 3, 3]),
        "conv2d: needs x[N,C,H,W] and weight[K,C/groups,R,S], got f32[4,6] and f32[4,5,3,3]"
        + _CONV_HINT,
    ),
    (
        lambda x, w, b: bg.conv2d(x, w, b), (X, bg.Tensor[4, 3, 1, 1], bg.Tensor[3]),
        "conv2d: per-channel operand must have shape [4], got f32[3]" + _CONV_HINT,
    ),
    (
        lambda x, w: bg.conv2d(x, w, groups=2), (X, bg.Tensor[4, 3, 1, 1]),
        "conv2d: groups=2 must divide the channels of f32[8,3,8,8] and of weight f32[4,3,1,1]"
        + _CONV_HINT,
    ),
    (
        lambda x, w: bg.conv2d(x, w, stride=0), (X, bg.Tensor[4, 3, 1, 1]),
        "conv2d: stride must be an integer, 1 or more, got 0",
    ),
    # --- numbers that no kernel, no float or no message holds
    (
        lambda x, w: bg.conv2d(x, w, groups=2**31), (X, bg.Tensor[4, 3, 1, 1]),
        "conv2d: groups must be an integer from 1 to 2147483647, got 2147483648"
        + _CONV_HINT,
    ),
    (
        lambda x, w: bg.conv2d(x, w, dilation=-(10**5000)), (X, bg.Tensor[4, 3, 1, 1]),
        "conv2d: dilation must be an integer, 1 or more, got an integer of 16610 bits",
    ),
    (
        lambda x: bg.leaky_relu(x, 10**400), (X,),
        "leaky_relu: negative_slope exceeds every float, got an integer of 1329 bits",
    ),
    (
        lambda x: bg.batch_norm(x, None, None, training=True, eps=float("inf")), (X,),
        "batch_norm: eps must be a finite number, 0 or more, got inf" + _BN_HINT,
    ),
    (
        lambda x: bg.parameter("w", (2**40, 2**40)), (X,),
        "Tensor: [1099511627776, 1099511627776] is too large: it takes 2^63 bytes or more (write "
        "extents and then the dtype: bg.Tensor[8, 3, 32, 32] or bg.Tensor[8, bg.int64])",
    ),
    (
        lambda x: x + bg.parameter("w", (2**60, 1, 1, 1, 1)), (X,),
        "add: [1152921504606846976, 8, 3, 8, 8] is too large: it takes 2^63 bytes or more (shapes "
        "align at the last axis; a per-channel vector needs .view(1, -1, 1, 1))",
    ),
    (
        lambda x: bg.buffer("n", (), bg.int64, init=2**63), (X,),
        "n: a constant of int64 cannot be 9223372036854775808",
    ),
    (
        lambda x: x.reshape(10**5000), (X,),
        "reshape: shape must be a tuple of extents, each 1 or more, got "
        "(an integer of 16610 bits,)",
    ),
    (
        lambda x, w: bg.conv2d(x, w, None, 1, "full"), (X, bg.Tensor[4, 3, 1, 1]),
        "conv2d: padding 'full' (use an int, a pair, 'same' or 'valid')",
    ),
    (
        lambda x, w: bg.conv2d(x, w, stride=2, padding="same"), (X, bg.Tensor[4, 3, 3, 3]),
        "conv2d: padding='same' needs a stride of 1, got (2, 2) (give the padding in numbers)",
    ),
    (
        lambda x: bg.max_pool2d(x, (2, 2, 2)), (X,),
        "max_pool2d: kernel_size must be an integer or a pair of them, got (2, 2, 2)",
    ),
    (
        lambda x: bg.layers.conv2d(x, "conv", 4, 3, groups=0), (X,),
        "conv2d: groups must be an integer, 1 or more, got 0",
    ),
    (
        lambda x: bg.layers.conv2d(x, "conv", 4, 3, groups=2), (X,),
        "conv2d: layer 'conv' with groups=2 got f32[8,3,8,8] (x is [N,C,H,W] and groups "
        "divides C)",
    ),
    (
        lambda x: bg.layers.conv_transpose2d(x, "up", 5, 2, groups=3), (X,),
        "conv_transpose2d: layer 'up' with groups=3 got f32[8,3,8,8] (x is [N,C,H,W] and groups "
        "divides C and out_channels)",
    ),
    (
        lambda x: bg.max_pool2d(x, 9), (X,),
        "max_pool2d: window [9, 9] exceeds padded f32[8,3,8,8]" + _POOL_HINT,
    ),
    (
        lambda x: bg.avg_pool2d(x, 2, padding=2), (X,),
        "avg_pool2d: padding [2, 2] exceeds half of the window" + _POOL_HINT,
    ),
    (
        lambda x: bg.avg_pool2d(x, 2, divisor_override=0), (X,),
        "avg_pool2d: divisor_override is 0 (leave it out for the window's own)",
    ),
    (
        lambda x: bg.adaptive_avg_pool2d(x, 0), (X,),
        "adaptive_avg_pool2d: output_size must be an integer, 1 or more, got 0",
    ),
    (
        lambda x, w: bg.linear(x, w), (MATRIX, bg.Tensor[3, 5]),
        "linear: input f32[4,6] does not fit weight f32[3,5] (input is [..., in], weight [out, "
        "in], bias [out])",
    ),
    (
        lambda a, b: a + b, (X, bg.Tensor[3]),
        "add: shapes [8, 3, 8, 8] and [3] do not broadcast (shapes align at the last axis; a "
        "per-channel vector needs .view(1, -1, 1, 1))",
    ),
    (
        lambda a, b: bg.cat([a, b]), (X, bg.Tensor[8, 3, 4, 8]),
        "cat: f32[8,3,4,8] cannot be joined with f32[8,3,8,8] along axis 0 (only the joined axis "
        "may differ in extent)",
    ),
    (lambda a: bg.cat([a], 4), (X,), "cat: dim 4 is out of range for f32[8,3,8,8]"),
    (lambda a: bg.cat([]), (X,), "cat: needs a list of tensors (bg.cat([a, b], dim=1))"),
    (
        lambda x: x.reshape(5, -1), (MATRIX,),
        "reshape: f32[4,6] has 24 elements, no multiple of 5",
    ),
    (
        lambda x: x.reshape(5, 5), (MATRIX,),
        "reshape: f32[4,6] has 24 elements, not those of [5, 5]",
    ),
    (lambda x: x.reshape(-1, -1), (MATRIX,), "reshape: [-1, -1] has more than one -1"),
    (
        lambda x: x.reshape(2.0, 12), (MATRIX,),
        "reshape: [2.0, 12] is no shape (use positive integers and one -1)",
    ),
    (lambda x: x.sum(2), (MATRIX,), "sum: axes [2] are out of range for rank 2 (f32[4,6])"),
    (lambda x: x.sum("h"), (MATRIX,), "sum: dim must be an int or a tuple of ints, got 'h'"),
    (
        lambda x: x[:, ::-1], (MATRIX,),
        "subscript: slice(None, None, -1) does not index axis 1 of f32[4,6] (use integers inside "
        "the axis and slices of steps of 1 or more)",
    ),
    (
        lambda x: x[4], (MATRIX,),
        "subscript: 4 does not index axis 0 of f32[4,6] (use integers inside the axis and slices "
        "of steps of 1 or more)",
    ),
    (
        lambda x: x[True], (MATRIX,),
        "subscript: True does not index axis 0 of f32[4,6] (use integers inside the axis and "
        "slices of steps of 1 or more)",
    ),
    (
        lambda x: bg.layers.conv2d(x, "m", 8, 3, padding=1, padding_mode="zero"), (X,),
        "conv2d: padding_mode 'zero' [in m] (modes are zeros, reflect, replicate, circular)",
    ),
    # --- batch normalization
    (
        lambda x: bg.batch_norm(x, None, None), (X,),
        "batch_norm: no running statistics to evaluate with (pass running_mean and running_var, "
        "or training=True)",
    ),
    (
        lambda x, m: bg.batch_norm(x, m, None, training=True), (X, bg.Tensor[3]),
        "batch_norm: only one running statistic (give both or neither)",
    ),
    (
        lambda x: bg.batch_norm(x, None, None, training=True), (bg.Tensor[1, 3, 1, 1],),
        "batch_norm: f32[1,3,1,1] has a single value per channel, which has no variance (train "
        "with a larger batch or feature map, or use training=False)",
    ),
    (
        lambda x, w: bg.batch_norm(x, None, None, w, training=True), (X, bg.Tensor[4]),
        "batch_norm: per-channel operand must have shape [3], got f32[4]" + _BN_HINT,
    ),
    (
        lambda x, m, v: bg.batch_norm(x, m, v, training=True), (X, bg.Tensor[4], bg.Tensor[4]),
        "batch_norm: a running statistic is f32[4], expected f32[3]" + _BN_HINT,
    ),
    (
        lambda x, m: bg.batch_norm(x, m * 2, m, training=True), (X, bg.Tensor[3]),
        "batch_norm: 'mul_0' is computed by the program, so it cannot be updated (update "
        "arguments, parameters and buffers)",
    ),
    (
        lambda x, m, v: bg.batch_norm(x, m, v, training=True, momentum=None),
        (X, bg.Tensor[3], bg.Tensor[3]),
        "batch_norm: momentum=None averages over batches nobody counts (pass "
        "num_batches_tracked=, or a momentum)",
    ),
    (
        lambda x: bg.batch_norm(x, None, None, training=True, eps=-1), (X,),
        "batch_norm: eps must be a number, 0 or more, got -1",
    ),
    (
        lambda x: bg.bn_stats(x), (bg.Tensor[4],),
        "bn_stats: needs a channel axis (rank 2 or more), got f32[4]" + _BN_HINT,
    ),
    # --- dtypes
    (
        lambda x, w: bg.conv2d(x, w), (X, bg.Tensor[4, 3, 1, 1, bg.float64]),
        "conv2d: input is f32[8,3,8,8] but weight is f64[4,3,1,1] (convert to one floating-point "
        "dtype with .to(...))",
    ),
    (
        lambda x: bg.relu6(x), (LABELS,),
        "relu6: input is i64[4] (convert to one floating-point dtype with .to(...))",
    ),
    (lambda x: x.mean(), (LABELS,), "mean: x is i64[4] (convert it first: x.float().mean())"),
    (
        lambda x: -(x > 0), (MATRIX,),
        "neg: not defined for bool (convert it with .to(bg.float32))",
    ),
    (
        lambda x: bg.where(x, x, 0), (MATRIX,),
        "where: the condition must be bool, got f32[4,6] (the condition is a comparison; all "
        "three broadcast)",
    ),
    (
        lambda x: x.to("float16"), (MATRIX,),
        "to: 'float16' is no dtype "
        "(use one of bfloat16, float32, float64, int32, int64, uint8, bool)",
    ),
    # --- what is no tensor
    (
        lambda x: x + np.ones(6), (MATRIX,),
        "add: takes tensors and numbers, got ndarray" + _ARRAY_HINT,
    ),
    (
        lambda x: np.ones(6) + x, (MATRIX,),
        "add: takes tensors and numbers, got ndarray" + _ARRAY_HINT,
    ),
    (
        lambda x: bg.conv2d(x, np.ones((4, 3, 1, 1))), (X,),
        "conv2d: weight must be a tensor, got ndarray" + _ARRAY_HINT,
    ),
    (
        lambda x: x if (x > 0) else -x, (MATRIX,),
        "greater_0 has no value while the program is traced, so Python cannot branch on it "
        "(select with bg.where(condition, a, b), or branch on shapes and Python values)",
    ),
    (
        lambda x: x * float(x), (MATRIX,),
        "x has no value while the program is traced, so it is no Python number (keep computing "
        "with tensors)",
    ),
    # --- the loss, dropout, SGD
    (
        lambda x, y: bg.cross_entropy(x, y), (MATRIX, bg.Tensor[5, bg.int64]),
        "cross_entropy: input f32[4,6] does not fit target i64[5] (input is [C], [N,C] or "
        "[N,C,H,W], target the same without C)",
    ),
    (
        lambda x, y: bg.cross_entropy(x, y), (MATRIX, bg.Tensor[4]),
        "cross_entropy: target is f32[4] (labels are class numbers: bg.Tensor[8, bg.int64])",
    ),
    (
        lambda x, y: bg.cross_entropy(x, y, reduction="avg"), (MATRIX, LABELS),
        "cross_entropy: reduction 'avg' (use 'mean', 'sum' or 'none')",
    ),
    (
        lambda x, y, w: bg.cross_entropy(x, y, w), (MATRIX, LABELS, bg.Tensor[5]),
        "cross_entropy: weight is f32[5] for 6 classes",
    ),
    (
        lambda x: bg.dropout(x), (MATRIX,),
        "dropout: the seed is None (pass seed=0, or an integer tensor with one element)",
    ),
    (
        lambda x, s: bg.dropout(x, seed=s), (MATRIX, LABELS),
        "dropout: the seed is i64[4] (pass seed=0, or an integer tensor with one element)",
    ),
    (
        lambda x: bg.dropout(x, 1.5, seed=0), (MATRIX,),
        "dropout: p must be a number from 0 to 1, got 1.5",
    ),
    (
        lambda w, g: bg.sgd(w, g, momentum=0.9)[0], (MATRIX, MATRIX),
        "sgd: momentum needs a momentum_buffer (declare one with bg.buffer)",
    ),
    (
        lambda w, g: bg.sgd(w, g, w, nesterov=True)[0], (MATRIX, MATRIX),
        "sgd: nesterov needs a momentum and no dampening",
    ),
    (
        lambda w, g: bg.sgd(w, g, lr=-1)[0], (MATRIX, MATRIX),
        "sgd: lr must be a number, 0 or more, got -1",
    ),
    (
        lambda w, g: bg.sgd(w, g)[0], (MATRIX, LABELS),
        "sgd: param is f32[4,6] but grad is i64[4] (convert to one floating-point dtype with "
        ".to(...))",
    ),
    (
        lambda w, g: (bg.update(w, g), w)[1], (MATRIX, bg.Tensor[4]),
        "update: 'w' is f32[4,6], its new value f32[4]",
    ),
    (
        lambda w, g, n: bg.adam(w, g, w, w, n, amsgrad=True)[0],
        (MATRIX, MATRIX, bg.Tensor[bg.int64]),
        "adam: amsgrad needs a max_exp_avg_sq (declare one with bg.buffer)",
    ),
    (
        lambda w, g: bg.adamw(w, g, w, w, g)[0], (MATRIX, MATRIX),
        "adam: step is f32[4,6] (the number of a step is an int64 without axes)",
    ),
    (
        lambda w, g: bg.rmsprop(w, g, bg.buffer("s", 3))[0], (MATRIX, MATRIX),
        "rmsprop: square_avg is f32[3] for a parameter f32[4,6]",
    ),
    (
        lambda w: bg.clip_grad_norm({"w": w}, -1)[0]["w"], (MATRIX,),
        "clip_grad_norm: max_norm must be a number, 0 or more, got -1",
    ),
    (
        lambda w: bg.clip_grad_value([w], 1)["w"], (MATRIX,),
        "clip_grad_value: grads must be a dict of gradients, got list (pass what bg.grad or "
        "bg.value_and_grad gives)",
    ),
    # --- parameters and scopes
    (
        lambda x: (bg.parameter("w", 3), bg.parameter("w", 4))[0], (MATRIX,),
        "parameter 'w': f32[4] is already declared as parameter f32[3] (open another bg.scope, "
        "or declare it with the same kind, shape and dtype)",
    ),
    (
        lambda x: bg.buffer("x", (4, 6)), (MATRIX,),
        "buffer 'x': f32[4,6] is already declared as input f32[4,6] (open another bg.scope, or "
        "declare it with the same kind, shape and dtype)",
    ),
    (
        lambda x: (bg.relu(x), bg.parameter("relu_0", 3))[1], (MATRIX,),
        "parameter 'relu_0': an intermediate value has this name (rename it)",
    ),
    (
        lambda x: bg.parameter("a b", 3), (MATRIX,),
        "parameter: 'a b' cannot be a name (use ASCII letters, digits, underscores, and dots "
        "and dashes inside)",
    ),
    (
        lambda x: bg.parameter("w", (3, 0)), (MATRIX,),
        "Tensor: 0 is no extent, which is a positive integer (write extents and then the dtype: "
        "bg.Tensor[8, 3, 32, 32] or bg.Tensor[8, bg.int64])",
    ),
    (
        lambda x: bg.parameter("w", 3, "int64"), (MATRIX,),
        "parameter 'w': is i64[3] (use bg.buffer for what is not trained)",
    ),
    (
        lambda x: bg.parameter("w", 3, init=("he",)), (MATRIX,),
        "w: ('he',) is no initializer (a number, or a tuple that starts with one of "
        "kaiming_uniform, kaiming_normal_fan_in, kaiming_normal_fan_out, uniform, normal, "
        "constant)",
    ),
    (
        lambda x: bg.parameter("w", 3, init=("normal",)), (MATRIX,),
        "w: 'normal' takes 1 numbers, got ('normal',)",
    ),
    (
        lambda x: bg.scope(3), (MATRIX,),
        '''scope: 3 cannot be a name (write bg.scope("layer1"))''',
    ),
    # --- results and the user's own mistakes
    (
        lambda x: None, (MATRIX,),
        "f: returns nothing (return a tensor, or a tuple, list or dict of tensors)",
    ),
    (
        lambda x: (), (MATRIX,),
        "f: returns nothing (return a tensor, or a tuple, list or dict of tensors)",
    ),
    (
        lambda x: (x, 3.0), (MATRIX,),
        "f: returns float, which is no tensor (return a tensor, or a tuple, list or dict of "
        "tensors)",
    ),
    (lambda x: {1: x}, (MATRIX,), "f: returns a dict with keys that are no text"),
    (lambda x: bg.conv(x), (X,), "bngen has no 'conv' (did you mean conv2d or conv1d?)"),
    (lambda x: bg.vmap(x), (X,), "bngen has no 'vmap' (see bngen.__all__)"),
    (lambda x: undefined(x), (X,), "f: NameError: name 'undefined' is not defined"),  # noqa: F821
    (
        lambda x: bg.relu(x, inplace=True), (X,),
        "f: TypeError: relu() got an unexpected keyword argument 'inplace'",
    ),
    (lambda x: x.softmax(), (X,), "f: TypeError: softmax() missing 1 required positional "
     "argument: 'dim'"),
    (lambda x: x * qwertz, (X,),  # noqa: F821
     "f: NameError: name 'qwertz' is not defined"),
    (lambda x: prnt(x), (X,),  # noqa: F821
     "f: NameError: name 'prnt' is not defined (did you mean print?)"),
    (lambda x: x * (1 / 0), (X,), "f: ZeroDivisionError: division by zero"),
    (lambda x: {}["a"], (X,), "f: KeyError: 'a'"),
    (
        lambda x: {"a": {"b": x}}, (X,),
        "f: returns dict, which is no tensor (return a tensor, or a tuple, list or dict of "
        "tensors)",
    ),
    (
        lambda x: (x, None), (X,),
        "f: returns NoneType, which is no tensor (return a tensor, or a tuple, list or dict of "
        "tensors)",
    ),
    (
        lambda x: x.size, (X,),
        "f: returns the function size itself, which is no tensor (return a tensor, or a tuple, "
        "list or dict of tensors)",
    ),
    # --- what tensors do not have
    (lambda x: x.vew(2, 12), (MATRIX,),
     "f: AttributeError: 'Tensor' object has no attribute 'vew' (did you mean view?)"),
    (
        lambda x: bg.layers.conv(x), (X,),
        "f: AttributeError: module 'bngen.lang.layers' has no attribute 'conv' (did you mean "
        "conv2d?)",
    ),
    (
        lambda x: x.numpy(), (X,),
        "f: AttributeError: 'Tensor' object has no attribute 'numpy' (a tensor has no value while "
        "the program is traced; compute with bg's functions)",
    ),
    (
        lambda x: x.sum().backward(), (X,),
        "f: AttributeError: 'Tensor' object has no attribute 'backward' (gradients come from "
        "bg.build(..., grad=True), bg.grad or bg.value_and_grad)",
    ),
    (
        lambda x: x.relu_(), (X,),
        "f: AttributeError: 'Tensor' object has no attribute 'relu_' (nothing changes a tensor: "
        "write x = x.relu(...))",
    ),
    (
        lambda x: x.double(), (X,),
        "f: AttributeError: 'Tensor' object has no attribute 'double' (write .to(bg.float64))",
    ),
    (
        lambda x: x.__setitem__(0, 1.0), (X,),
        "nothing changes a tensor, so no part of x can be assigned to (make a new one with "
        "bg.where or bg.cat)",
    ),
    (
        lambda x: x * int(x), (X,),
        "x has no value while the program is traced, so it is no Python number (keep computing "
        "with tensors)",
    ),
    (
        lambda x: x if 3 in x else -x, (X,),
        "x has no value while the program is traced, so Python cannot branch on it (select with "
        "bg.where(condition, a, b), or branch on shapes and Python values)",
    ),
    (
        lambda x: bg.where(x > 0, np.asarray(x), 0), (X,),
        "x has no value while the program is traced, so it is no array (compute with bg's "
        "functions in place of NumPy's)",
    ),
    (
        lambda x: np.sum(x), (X,),
        "np.sum: NumPy cannot compute with x, which has no value yet (use bg's functions)",
    ),
    (lambda x: [row for row in x.sum()], (X,), "len: sum_0 has no axes"),
    # --- operands and settings of the wrong kind
    (lambda x: bg.relu6(None), (X,), "relu6: input must be a tensor, got NoneType" + _ARRAY_HINT),
    (
        lambda x: bg.conv2d(x, None), (X,),
        "conv2d: weight must be a tensor, got NoneType" + _ARRAY_HINT,
    ),
    (lambda x: bg.softmax(None, 0), (X,), "softmax: input must be a tensor, got NoneType"
     + _ARRAY_HINT),
    (
        lambda x: x + torch.ones(8), (X,),
        "add: takes tensors and numbers, got torch.Tensor" + _ARRAY_HINT,
    ),
    (
        lambda x: x + bg.relu, (X,),
        "add: takes tensors and numbers, got the function relu itself" + _ARRAY_HINT,
    ),
    (
        lambda x: x + 10**400, (X,),
        "add: an integer of 1329 bits exceeds every floating-point number",
    ),
    (
        lambda x: x + 2**70, (LABELS,),
        "add: an integer of 71 bits is no int64, which the tensor beside it is (convert the "
        "tensor to a wider type first, such as .to(bg.int64) or .float())",
    ),
    (
        lambda x: x.sum(0, np.ones(3)), (X,),
        "sum: keepdim must be True or False, got array([1., 1., 1.])",
    ),
    (
        lambda x: bg.batch_norm(x, None, None, training=None), (X,),
        "batch_norm: training must be True or False, got None",
    ),
    (
        lambda x: bg.cross_entropy(x, x, reduction=np.ones(3)), (MATRIX,),
        "cross_entropy: reduction array([1., 1., 1.]) (use 'mean', 'sum' or 'none')",
    ),
]  # fmt: skip


def test_endless_recursion_is_the_users_wherever_it_is_noticed():
    def endless(x):
        return endless(x + 1.0)

    with pytest.raises(bg.ProgramError) as caught:
        _ = bg.trace(endless, X).graph
    line = endless.__code__.co_firstlineno + 1
    assert str(caught.value).startswith(f"{__file__}:{line}: endless: RecursionError: maximum rec")


@pytest.mark.parametrize(("fn", "types", "message"), CASES, ids=[c[2][:40] for c in CASES])
def test_message(fn, types, message):
    assert _message(fn, *types) == message


def test_scope_is_named():
    def f(x):
        with bg.scope("features"), bg.scope("block1"):
            return bg.layers.conv2d(x, "conv0", 4, 9)

    assert _message(f, X) == (
        "conv2d: window 9x9 (dilation [1, 1]) exceeds padded f32[8,3,8,8] "
        "[in features.block1.conv0]" + _CONV_HINT
    )


def test_bad_annotations_are_found_where_the_program_is_written():
    def unannotated(x: MATRIX, y):
        return x

    def annotated_with(what):
        def f(x):
            return x

        f.__annotations__ = {"x": what}
        return f

    def variadic(*xs: MATRIX):
        return xs

    for fn, message in (
        (unannotated, "unannotated: argument 'y' has no type (write y: bg.Tensor[8, 64, 56, 56])"),
        (annotated_with(int), "f: argument 'x' is annotated with <class 'int'> (write x: "
         "bg.Tensor[8, 64, 56, 56])"),
        (annotated_with("nowhere[3]"), "f: the annotation 'nowhere[3]' of 'x' fails: name "
         "'nowhere' is not defined"),
        (variadic, "variadic: *xs has no fixed types (name every argument, or use bg.trace(fn, "
         "*types))"),
    ):  # fmt: skip
        with pytest.raises(bg.ProgramError) as caught:
            bg.program(fn)
        assert str(caught.value) == f"{__file__}:{fn.__code__.co_firstlineno}: {message}"


@pytest.mark.parametrize("items", [0, -1, (8, True), (8, 2.5), (8, "float16"), ("int64", 8), "x"])
def test_bad_types(items):
    with pytest.raises(bg.ProgramError) as caught:
        _ = bg.Tensor[items]
    assert str(caught.value).startswith(__file__)
    assert "bg.Tensor[8, bg.int64]" in str(caught.value) or "use one of" in str(caught.value)


def test_trace_wants_one_type_an_argument():
    for types, message in (
        ((), "f: argument 'x' has no type (pass one type an argument)"),
        ((X, X), "f: takes 1 arguments, got 2 types"),
        (("f32",), "f: 'f32' is no tensor type (write bg.Tensor[8, 64, 56, 56])"),
    ):
        with pytest.raises(bg.ProgramError) as caught:
            bg.trace(lambda x: x, *types, name="f")
        assert str(caught.value).endswith(f": {message}")


def test_tensors_of_another_trace():
    kept = []
    _ = bg.trace(lambda x: kept.append(x) or x, X, name="first").graph
    assert _message(lambda x: x + kept[0], X) == (
        "add: operand 'x' belongs to a trace of 'first', not to this one of 'f' (pass it as an "
        "argument, or return it from the program that makes it)"
    )
    assert _message(lambda x: kept[0], X) == (
        "f: returns 'x', which belongs to a trace of 'first' (pass it as an argument)"
    )
    with pytest.raises(bg.ProgramError, match="relu: only works while a program is being traced"):
        bg.relu(kept[0])


def test_calls_of_programs():
    inner = bg.trace(lambda x, y: x + y, MATRIX, MATRIX, name="inner")
    replayed = bg.Program.from_graph(inner.graph)
    with pytest.raises(bg.ProgramError) as caught:
        inner(np.ones((4, 6)), np.ones((4, 6)))
    assert str(caught.value).endswith(
        ": inner: a program computes only once it is built (mod = bg.build(inner); mod(...))"
    )
    for program in (inner, replayed):
        assert _message(lambda x, program=program: program(x, x[:2]), MATRIX) == (
            "inner: argument 'y' takes f32[4,6], got f32[2,6]"
        )
        assert _message(lambda x, program=program: program(x, 3), MATRIX).startswith(
            "inner: argument 'y' must be a tensor, got int"
        )
    assert _message(lambda x: inner(x), MATRIX) == "inner: missing a required argument: 'y'"
    assert _message(lambda x: replayed(x), MATRIX) == "inner: missing argument 'y' (it is f32[4,6])"
    assert _message(lambda x: replayed(x, z=x), MATRIX) == "inner: takes the arguments ['x', 'y']"


def test_errors_inside_bngen_are_not_blamed_on_the_user(monkeypatch):
    def broken(*_, **__):
        raise KeyError("a bug")

    program = traced(lambda x: bg.relu(x), np.ones(3))
    monkeypatch.setattr("bngen.ir.build.infer", _in_package(broken))
    with pytest.raises(KeyError):
        _ = program.graph


def _in_package(fn):
    """``fn``, called from a file that seems to lie inside the package."""
    namespace = {"KeyError": KeyError}
    source = "def raising(*_, **__):\n    raise KeyError('a bug')\n"
    exec(compile(source, bg.__file__.replace("__init__", "pretended"), "exec"), namespace)
    return namespace["raising"]


# --- what is no program -----------------------------------------------------------------------


def plain(x: MATRIX):
    return x + 1.0


def generator(x: MATRIX):
    yield x


async def coroutine(x: MATRIX):
    return x


class Network:
    def __call__(self, x: MATRIX):
        return x + 1.0

    def method(self, x: MATRIX):
        return x * 2.0


def _complaint(call, *args, **named):
    with pytest.raises(bg.ProgramError) as caught:
        call(*args, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "take",
    [bg.build, bg.grad, bg.value_and_grad, functools.partial(bg.training_step, optimizer=bg.SGD())],
)
def test_a_function_that_is_no_program_yet(take):
    label = getattr(take, "__name__", "training_step")
    line = plain.__code__.co_firstlineno
    what = f"{label}: plain is a function, not a program (write @bg.program above it)"
    assert _complaint(take, plain) == f"{__file__}:{line}: {what}"


@pytest.mark.parametrize(
    ("thing", "what"),
    [
        (5, "got int (mark the function with @bg.program)"),
        (None, "got NoneType (mark the function with @bg.program)"),
        (Network, "got the class Network (mark the function with @bg.program)"),
        (Network(), "got Network (mark the function with @bg.program)"),
        (MATRIX, "got TensorType (mark the function with @bg.program)"),
        (np.ones(3), "got ndarray (mark the function with @bg.program)"),
        ([plain], "got list (mark the function with @bg.program)"),
        (bg, "got module (mark the function with @bg.program)"),
        ("resnet18", "got str (a built-in network is bg.models.make('resnet18'))"),
        (torch.nn.Linear(2, 2), "got Linear (networks are written in bngen's own language: see "
         "bg.program, and bg.models)"),
    ],
)  # fmt: skip
def test_a_thing_that_is_no_program(thing, what):
    for take in (bg.build, bg.grad):
        where, _, told = _complaint(take, thing).partition(": ")
        assert where.startswith(f"{__file__}:")
        assert told == f"{take.__name__}: takes a program, {what}"


def test_a_lambda_is_told_about_trace():
    told = _complaint(bg.build, lambda x: x)
    what = "<lambda> is a function, not a program (write bg.trace(it, *types))"
    assert told.endswith(f"build: {what}")


def test_a_compiled_module_is_no_program():
    built = bg.build(bg.trace(lambda x: x + 1.0, bg.Tensor[3]))
    assert "got Module (this one is compiled already: call it)" in _complaint(bg.build, built)


def test_a_misspelling_is_named_by_whoever_needs_the_graph():
    """It is an AttributeError, too, which `hasattr` and `getattr` would swallow."""

    def f(x: MATRIX):
        return bg.rellu(x)

    line = f.__code__.co_firstlineno + 1
    for take in (bg.build, bg.grad, lambda p: bg.build(p, grad=True)):
        told = _complaint(take, bg.program(f))
        hint = "did you mean relu or relu6 or prelu?"
        assert told == f"{__file__}:{line}: bngen has no 'rellu' ({hint})"


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (generator, "generator: is a generator (a program is a plain function that returns"),
        (coroutine, "coroutine: is async (a program is a plain function that returns tensors)"),
        (staticmethod(generator), "generator: is a generator"),
        (Network, "program: Network is a class (decorate a function)"),
        (Network.method, "method: argument 'self' has no type (a method is a program of its "
         "object: bg.trace(obj.method, *types))"),
        (property(plain), "is no function"),
        (classmethod(plain), "is no function"),
        (5, "program: 5 is no function"),
        (print, "print: *args has no fixed types"),
        (np.exp, "argument"),
    ],
)  # fmt: skip
def test_what_cannot_be_decorated(fn, what):
    assert what in _complaint(bg.program, fn)


def test_what_else_can_be_called_is_a_program():
    for fn in (Network(), Network().method, functools.partial(plain), staticmethod(plain)):
        assert bg.program(fn).graph.outputs[0].shape == (4, 6)
    program = bg.program(plain)
    assert bg.program(program) is program


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ({"fusion": []}, "unknown fusion level []"),
        ({"fusion": 3}, "unknown fusion level 3"),
        ({"threads": "2"}, "cannot run on '2' threads"),
        ({"threads": 0}, "cannot run on 0 threads"),
        ({"grad": True, "wrt": "x"}, "wrt='x' is no list of names (write wrt=[\"weight\"])"),
        ({"grad": True, "wrt": 5}, "wrt=5 is no list of names"),
        ({"grad": True, "wrt": [5]}, "wrt=[5] is no list of names"),
        ({"wrt": ["x"]}, "wrt chooses gradients, and none are built (add grad=True)"),
        ({"schedules": 5}, "schedules=5 is no folder"),
        ({"progress": 5}, "progress=5 cannot be called"),
        ({"dump": "all"}, "dump='all' cannot be called"),
        ({"target": 5}, "unknown target kind '5'"),
    ],
)
def test_wrong_settings_of_a_build(named, what):
    with pytest.raises(bg.BngenError) as caught:
        bg.build(bg.program(plain), **named)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ({"emit": "asm"}, "emit='asm' is no list of kinds (write emit=[\"asm\"])"),
        ({"emit": [5]}, "emit=[5] is no list of kinds"),
        ({"emit": ["cuda"]}, "unknown kind of text 'cuda' (one of tir, ll, asm)"),
        ({"fusion": 3}, "unknown fusion level 3"),
        ({"wrt": ["x"]}, "wrt chooses gradients, and none are built (add grad=True)"),
    ],
)
def test_wrong_settings_of_a_bundle(named, what):
    with pytest.raises(bg.BngenError) as caught:
        bg.bundle(bg.program(plain), **named)
    assert what in str(caught.value)


def test_rows_of_a_tensor():
    def f(x):
        a, b, c, d = x
        return sum(x) - (a + b + c + d), copy.deepcopy(x), f"{x:.2f}" and a

    graph = bg.trace(f, MATRIX).graph
    assert [v.shape for v in graph.outputs] == [(6,), (4, 6), (6,)]


# --- anything at all --------------------------------------------------------------------------

OPS = {
    name: getattr(bg, name)
    for name in bg.__all__
    if inspect.isfunction(getattr(bg, name))
    and getattr(bg, name).__module__.startswith("bngen.lang.")
    and name not in ("program", "trace")
}
OPS |= {
    f"layers.{name}": f
    for name, f in vars(layers).items()
    if inspect.isfunction(f) and f.__module__ == layers.__name__ and not name.startswith("_")
}


def _anything(rng, tensors):
    """An operand or a setting, sensible or not."""
    other = (
        None, 5, -1, 0, 1, 2, True, False, 2.5, 0.0, float("nan"), float("inf"), "a", "", b"x",
        (1, 2), (1, 2, 3), [2, 2], (-1, 2), (), {}, {"a": 1}, set(), object(), int, len, plain,
        np.ones(3), np.float32(2), np.int64(3), np.array(2), 2**70, 10**400, 1e300, slice(None),
        Ellipsis, [None], ("normal", 1), ("constant", None), "valid", "mean", bg.float64, "float16",
        range(2), 1j, [tensors], list(tensors), torch.ones(2),
    )  # fmt: skip
    return rng.choice(tensors) if rng.random() < 0.4 else rng.choice(other)


@pytest.mark.parametrize("name", OPS)
def test_whatever_an_op_is_given_it_gives_a_tensor_or_an_error_at_the_users_line(name):
    op, rng = OPS[name], random.Random(name)
    parameters = inspect.signature(op).parameters.values()

    def f(*tensors):
        args = [
            _anything(rng, tensors) for p in parameters
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
        ]  # fmt: skip
        chosen = (p for p in parameters if p.default is not p.empty and rng.random() < 0.4)
        op(*args, **{p.name: _anything(rng, tensors) for p in chosen})
        return tensors[0]

    types = bg.Tensor[2, 3, 4, 4], bg.Tensor[4, 6], bg.Tensor[3], bg.Tensor[4, bg.int64]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            try:
                _ = bg.trace(f, *types).graph
            except bg.ProgramError as error:
                text = str(error)
                assert text.startswith(f"{__file__}:") and "\n" not in text, text
