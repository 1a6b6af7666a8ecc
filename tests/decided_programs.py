"""Small programs that reach the strategies and conditions of fusion which the networks do not.

Each is there for what its docstring says. They are planned, not run, so that their sizes are those
at which something is decided, not those that are quick.
"""

from __future__ import annotations

from dataclasses import dataclass

import bngen as bg
from bngen.lang.program import Program


def _conv(x, name: str, channels: int, window=3, padding=None, **options):
    """A convolution without bias that by default keeps the size of maps."""
    rows, columns = (window, window) if isinstance(window, int) else window
    padding = (rows // 2, columns // 2) if padding is None else padding
    return bg.layers.conv2d(x, name, channels, window, padding=padding, bias=False, **options)


def _unit(x, name: str, channels: int, window=3, **options):
    """Convolution, batch normalization, ReLU."""
    x = _conv(x, f"{name}.conv", channels, window, **options)
    return bg.relu(bg.layers.batch_norm(x, f"{name}.norm"))


# --- convolutions ---------------------------------------------------------------------------------


def strided(x: bg.Tensor[4, 32, 28, 28]):
    """Data gradients by phases, of windows that have taps in all of them and in some."""
    x = _unit(x, "pixel", 48, 1, stride=2)
    x = _unit(x, "rows", 64, 3, stride=(2, 1))
    x = _unit(x, "columns", 64, 2, stride=(1, 2), padding=0)
    return _conv(x, "stride_of_seven", 512, 5, stride=7)


def strided_over_odd_maps(x: bg.Tensor[4, 32, 27, 30]):
    """No phases where a stride does not divide the map, or a group of rows of its statistics."""
    x = _unit(x, "kept", 48)
    x = _unit(x, "both", 48, 3, stride=2)
    x = _unit(x, "whole", 48, 3, stride=(7, 3))
    return _conv(x, "rows", 64, 1, stride=(2, 1))


def strided_by_three(x: bg.Tensor[4, 32, 60, 60]):
    """Groups of two rows, of which none holds three phases."""
    return _conv(_unit(x, "kept", 48), "stride_of_three", 64, 3, stride=3)


def dilated(x: bg.Tensor[4, 32, 24, 24]):
    """Neither Winograd nor, with a stride, phases."""
    x = _unit(x, "both", 32, 3, padding=2, dilation=2)
    x = _unit(x, "rows", 32, 3, padding=(3, 1), dilation=(3, 1))
    return _conv(x, "strided", 32, 3, padding=2, dilation=2, stride=2)


def grouped(x: bg.Tensor[4, 64, 28, 28]):
    """Groups of 32, 16, 8, 4 and 2 channels: some fill vectors of each width, some of none."""
    for groups in (2, 4, 8, 16, 32):
        x = _unit(x, f"of_{groups}", 64, groups=groups)
    x = _unit(x, "wider", 128, 1, groups=8)
    x = _unit(x, "narrower", 64, 1, groups=8)
    x = _unit(x, "strided", 64, groups=2, stride=2)
    return _conv(x, "strided_small", 64, groups=16, stride=2)


def grouped_over_joined_maps(x: bg.Tensor[4, 20, 12, 12]):
    """Channels padded in the midst of a map: groups begin within a block."""
    parts = [_unit(x, f"part{c}", c, 1) for c in (12, 20)]
    y = bg.cat(parts, 1)
    return _conv(y, "two", 32, groups=2), _conv(y, "each", 32, groups=32)


def depthwise(x: bg.Tensor[4, 24, 28, 28]):
    """A channel to itself: strided with a bias, dilated, wide, over odd maps; and to two."""
    x = bg.relu(bg.layers.conv2d(x, "bias", 24, 3, stride=2, padding=1, groups=24))
    x = _unit(x, "plain", 24, groups=24)
    x = _unit(x, "dilated", 24, padding=2, dilation=2, groups=24)
    x = _unit(x, "wide", 24, (5, 3), groups=24)
    x = _unit(x, "odd", 24, 3, stride=2, padding=0, groups=24)
    return _conv(x, "twice", 48, groups=24)


def winograd_borders(x: bg.Tensor[1, 32, 8, 8], y: bg.Tensor[1, 32, 6, 10],
                     z: bg.Tensor[1, 32, 9, 15], odd: bg.Tensor[2, 32, 5, 5],
                     flat: bg.Tensor[8, 32, 3, 7], thin: bg.Tensor[8, 32, 3, 9],
                     long: bg.Tensor[1, 32, 4, 300]):  # fmt: skip
    """Maps around the fewest tiles, and the most that may reach over a map."""
    maps = (x, y, z, odd, flat, thin, long)
    results = [_conv(_unit(v, f"a{i}", 32), f"b{i}", 32) for i, v in enumerate(maps)]
    results += [
        _conv(x, "valid", 32, padding=0),
        _conv(x, "five", 32, 5),
        _conv(x, "row", 32, (1, 3)),
    ]
    return tuple(results)


def images(grey: bg.Tensor[8, 1, 32, 32], seven: bg.Tensor[8, 7, 32, 32],
           eight: bg.Tensor[8, 8, 32, 32], joined: bg.Tensor[8, 6, 32, 32]):  # fmt: skip
    """Plain maps of few channels, and just enough to be blocked; changed before they are read."""
    return (
        _conv(grey, "grey", 20), _conv(grey * 2.0, "scaled", 20), _conv(seven, "seven", 20),
        _conv(eight, "eight", 20), _conv(joined, "groups", 12, groups=3),
        _conv(joined, "depthwise", 6, groups=6), _conv(joined, "strided", 20, 5, stride=2),
    )  # fmt: skip


def wide_layers(x: bg.Tensor[2, 512, 14, 14]):
    """Weights beyond any second-level cache, strided, and many blocks to choose tiles from."""
    x = _unit(x, "strided", 1024, 3, stride=2)
    x = _unit(x, "window", 1024, 3)
    return _conv(x, "pixel", 2048, 1)


# --- pools ----------------------------------------------------------------------------------------


def pools(x: bg.Tensor[4, 20, 28, 28]):
    """Every pool, between normalizations and convolutions; padded, overlapping, of odd ends."""
    x = bg.max_pool2d(_unit(x, "a", 24), 3, stride=2, padding=1)
    x = bg.max_pool2d(_unit(x, "b", 24), 2)
    x = bg.avg_pool2d(_unit(x, "c", 24), 3, stride=1, padding=1, count_include_pad=False)
    x = bg.avg_pool2d(bg.silu(x), (2, 3), ceil_mode=True)
    return bg.adaptive_avg_pool2d(bg.relu(x), (2, 1)), bg.adaptive_avg_pool2d(bg.tanh(x), 1)


def pools_forward(x: bg.Tensor[4, 20, 28, 28]):
    """Pools that remember nothing for a gradient."""
    x = bg.max_pool2d(_unit(x, "a", 24), 3, stride=2, padding=1)
    x = bg.relu(bg.max_pool2d(x, 2, stride=1, dilation=2)) * 0.5
    return bg.avg_pool2d(_unit(x, "b", 24), 2)


def large_windows(x: bg.Tensor[2, 16, 20, 20]):
    """Windows that are summed in double precision, and then a store slot."""
    y = bg.relu(bg.avg_pool2d(x, 9, stride=2))
    return y, bg.adaptive_avg_pool2d(bg.exp(x), 1), bg.adaptive_avg_pool2d(x, (3, 7))


# --- concatenations, views ------------------------------------------------------------------------


def dense_block(x: bg.Tensor[4, 16, 14, 14]):
    """Each layer reads all before it; widths that no vector divides."""
    features = [_conv(x, "stem", 20)]
    for i in range(3):
        y = bg.relu(bg.layers.batch_norm(bg.cat(features, 1), f"norm{i}"))
        features.append(_conv(_unit(y, f"neck{i}", 24, 1), f"conv{i}", 12))
    return _unit(bg.cat(features, 1), "last", 32, 1)


def joined_in_every_way(x: bg.Tensor[4, 16, 14, 14], v: bg.Tensor[24]):
    """Parts that are inputs, twice the same, in two joins, views; of rows."""
    a, b = _unit(x, "a", 16), _unit(x, "b", 8)
    halves = bg.cat([a[:, 8:], a[:, :8]], 1)
    return (
        _conv(bg.cat([x, a], 1), "input", 16, 1), _conv(bg.cat([b, b], 1), "twice", 16, 1),
        _conv(bg.cat([a, b], 1), "one", 16, 1), _conv(bg.cat([b, a], 1), "other", 16, 1),
        bg.cat([a, b], 1), bg.cat([a, a * 2.0], 2), _conv(halves, "halves", 16, 1),
        bg.cat([bg.relu(a + 1.0), b], 1) * v.reshape(24, 1, 1),
    )  # fmt: skip


def views(x: bg.Tensor[4, 48, 12, 12], v: bg.Tensor[48]):
    """Slices and other shapes between pointwise ops, which end at a block or do not, or move."""
    y = _unit(x, "a", 48)
    low, high, odd = y[:, :16], y[:, 16:], y[:, 5:23]
    flat = bg.relu(y.reshape(4, 48 * 144)) + 1.0
    turned = bg.relu(bg.sigmoid(x).reshape(4, 12, 48, 12)) * 2.0
    return (
        _conv(low * 2.0, "low", 16, 1), _conv(bg.tanh(high), "high", 16, 1),
        _conv(odd * odd, "odd", 16, 1), bg.exp(x[:, :16]) + bg.exp(y[:, :16]),
        bg.layers.linear(flat, "flat", 10), _conv(turned, "turned", 8),
        _conv(y[:, :, 2:10] * 2.0, "rows", 16, 1), y[1:3], bg.exp(y[:, 16:32]),
        (y * bg.exp(v).reshape(48, 1, 1)).sum((0, 2, 3)).reshape(1, 48, 1, 1) + y,
    )  # fmt: skip


def sliced_and_joined(x: bg.Tensor[4, 64, 12, 12]):
    """Channels split, one part computed, and joined: the other part is copied, or lies there."""
    y = _conv(x, "stem", 64, 1)
    left, right = y[:, :32], y[:, 32:]
    z = bg.cat([left, _unit(right, "right", 32)], 1)
    return _unit(z, "last", 32, 1), z[:, 16:48] * 2.0


# --- pointwise ops, and who reads them ------------------------------------------------------------


def dropped_out(x: bg.Tensor[4, 32, 12, 12], seed: bg.Tensor[bg.int64]):
    """Random numbers, drawn anew where they are needed, of maps and of rows."""
    y = bg.dropout(_unit(x, "a", 32), 0.3, seed=seed)
    y = _conv(y, "b", 32) + x
    z = bg.adaptive_avg_pool2d(bg.dropout(y, 0.5, seed=1), 1).reshape(4, 32)
    return bg.layers.linear(bg.dropout(z, 0.2, seed=seed), "fc", 10)


def residuals(x: bg.Tensor[4, 32, 12, 12]):
    """Sums before and after activations, of three, of a map with itself, of one with its copy."""
    y = x + _conv(_unit(x, "a", 48, 1), "b", 32)
    z = bg.relu(y + bg.layers.batch_norm(_conv(y, "c", 32), "cn"))
    three = bg.relu(_conv(z, "d", 32, 1) + y + z)
    twice = bg.relu(three + three) + bg.silu(three)
    return _conv(twice, "e", 32), _unit(twice, "f", 32, 1)


def many_readers(a: bg.Tensor[4, 16, 12, 12], b: bg.Tensor[4, 16, 12, 12],
                 c: bg.Tensor[4, 16, 12, 12], d: bg.Tensor[4, 16, 12, 12]):  # fmt: skip
    """Products of two to four maps, read so often that readers still, or no longer, recompute."""
    maps, results = [_conv(a, "a", 16, 1)], []
    for other, most in ((b, 3), (c, 2), (d, 1)):
        maps.append(_conv(other, f"map{len(maps)}", 16, 1))
        for times in (most, most + 1):
            y = bg.tanh(maps[0] * float(times))
            for v in maps[1:]:
                y = y * v
            results += [_conv(y, f"of{len(maps)}.{times}.{i}", 8, 1) for i in range(times)]
    return tuple(results)


def readers_through_others(a: bg.Tensor[4, 16, 12, 12], b: bg.Tensor[4, 16, 12, 12]):
    """Pointwise readers are looked through, to those who load, unless they are stored."""
    y = _conv(a, "a", 16, 1) * _conv(b, "b", 16, 1)
    branches = [bg.relu(y), bg.tanh(y), bg.sigmoid(y)]
    joined = branches[0] + branches[1]
    return (
        _conv(joined, "c", 16, 1), _conv(branches[2], "d", 16, 1), bg.avg_pool2d(joined, 2),
        branches[1], (branches[2] * 2.0).sum((0, 2, 3)), joined.mean((2, 3)),
    )  # fmt: skip


def store_slots(x: bg.Tensor[4, 16, 12, 12], bias: bg.Tensor[16], scale: bg.Tensor[16, 1, 1],
                pixel: bg.Tensor[1, 1, 12, 12], wide: bg.Tensor[3, 4, 16, 12, 12]):  # fmt: skip
    """What joins a store: of the result's domain, needing nothing that comes after it."""
    y = bg.layers.conv2d(x, "biased", 16, 1)
    held = bg.tanh(y * scale) + pixel
    late = _conv(bg.relu(y), "late", 16, 1)
    both = held * late
    mask = bg.where(y > 0.0, late, held)
    return (
        both, mask, y > 0.5, y * wide, y.to(bg.int32), held.mean((0, 2, 3)), bg.amax(y, (0, 2, 3)),
        y.sum((1,)), y.mean((0, 2, 3), keepdim=True) * y,
        bg.layers.linear(bias * 2.0 + bias, "v", 4),
    )  # fmt: skip


def own_normalizations(x: bg.Tensor[4, 24, 12, 12]):
    """Normalizations over other axes than a batch's, softmax over channels, long and short rows."""
    y = _conv(x, "a", 24, 1)
    for axes in ((2, 3), (1, 2, 3), (1,)):
        centred = y - y.mean(axes, keepdim=True)
        y = centred * bg.rsqrt((centred * centred).mean(axes, keepdim=True) + 0.1)
    return _conv(bg.softmax(y, 1), "b", 8, 1), bg.log_softmax(bg.tanh(y), 3)


def long_rows(x: bg.Tensor[1, 8, 2, 1500]):
    """Rows of which a partial sum would lose digits."""
    return _unit(x, "a", 16, 1), bg.exp(x).sum((0, 2, 3)), bg.layers.batch_norm(x, "b")


def evaluated(x: bg.Tensor[4, 16, 12, 12]):
    """Normalization by the running statistics, which depends on no batch; vectors normalized."""
    y = bg.relu(bg.layers.batch_norm(_conv(x, "a", 24), "an", training=False))
    y = bg.adaptive_avg_pool2d(_conv(y, "b", 40, 1), 1).reshape(4, 40)
    return bg.layers.linear(bg.relu(bg.layers.batch_norm(y, "bn")), "fc", 10)


def results_within(x: bg.Tensor[4, 16, 12, 12]):
    """Whatever a program returns is stored, though readers might recompute it."""
    y = _conv(x, "a", 16)
    z = bg.layers.batch_norm(y, "an")
    r = bg.relu(z)
    mean, var = bg.bn_stats(y)
    split = bg.relu(bg.bn_normalize(y, mean, var))
    return _conv(r, "b", 16), r, z, r > 1.0, _conv(split, "c", 16, 1), mean


def masks(x: bg.Tensor[4, 16, 12, 12], y: bg.Tensor[4, 16, 12, 12]):
    """Masks, constants and identities, which lie in no memory unless asked for."""
    mask = bg.where(x > 0.0, 1.0, 0.0)
    kept = bg.stop_gradient(bg.exp(x * y))
    chosen = bg.where(x > y, kept, mask)
    return (
        _conv(chosen, "a", 16, 1),
        _conv(bg.where(x > y, y, kept), "b", 16, 1),
        kept.sum((0, 2, 3)),
    )


# --- updates --------------------------------------------------------------------------------------


def classifier(x: bg.Tensor[4, 3, 32, 32], labels: bg.Tensor[4, bg.int64]):
    """A small network of every kind of layer that trains."""
    x = bg.max_pool2d(_unit(x, "stem", 24, 3, stride=2), 2)
    y = _conv(_unit(x, "neck", 40, 1), "grow", 24)
    x = bg.relu(bg.layers.batch_norm(bg.cat([x, x + y], 1), "norm"))
    x = _unit(_unit(x, "each", 48, groups=48), "last", 32, 1)
    x = bg.flatten(bg.adaptive_avg_pool2d(x, 1), 1)
    return bg.cross_entropy(bg.layers.linear(x, "fc", 10), labels)


def updated(x: bg.Tensor[4, 16], step: bg.Tensor[bg.int64]):
    """Values written where they lie, and those that somebody still reads, or that change places."""
    a, b = bg.parameter("a", (16,)), bg.parameter("b", (16,))
    c, d = bg.buffer("c", (4, 16)), bg.buffer("d", (4, 16))
    e, f = bg.buffer("e", (16, 16)), bg.buffer("f", (16,))
    y = x * a + b
    bg.update(a, a * 0.9 + y.sum((0,)))
    bg.update(b, b * 0.5)
    bg.update(c, d * 2.0)
    bg.update(d, c + y)
    bg.update(e, bg.matmul(e, e))
    bg.update(f, bg.exp(f) + bg.matmul(f.reshape(1, 16), e).reshape(16))
    return y * c, bg.softmax(y, 1)


@dataclass(frozen=True)
class Case:
    """A program, the lanes of the machines it is planned for, and whether with its gradient."""

    program: Program
    lanes: tuple[int, ...] = (16,)
    gradient: bool = True


_ALL = (4, 8, 16)
_AT_ALL_WIDTHS = (
    strided, dilated, grouped, grouped_over_joined_maps, depthwise, winograd_borders, images,
    wide_layers, joined_in_every_way, views,
)  # fmt: skip
_AT_ONE = (
    strided_over_odd_maps, strided_by_three, pools, large_windows, dense_block, sliced_and_joined,
    dropped_out, residuals, readers_through_others, store_slots, own_normalizations, long_rows,
    evaluated, results_within, masks,
)  # fmt: skip
_ALONE = (pools_forward, store_slots, many_readers, updated)

PROGRAMS = {
    **{f.__name__: Case(bg.program(f), _ALL) for f in _AT_ALL_WIDTHS},
    **{f.__name__: Case(bg.program(f)) for f in _AT_ONE},
    **{f"{f.__name__}_alone": Case(bg.program(f), gradient=False) for f in _ALONE},
    "value_and_grad": Case(bg.value_and_grad(bg.program(classifier)), (8,), gradient=False),
    "training_step": Case(
        bg.training_step(
            bg.program(classifier), bg.SGD(None, momentum=0.9, weight_decay=1e-4, nesterov=True)
        ),
        gradient=False,
    ),
}
