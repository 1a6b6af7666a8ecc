"""Fusion: which sub-layer joins which convolution, found by dataflow.

In: a graph after fission and layout. Out: a `KernelPlan`; see `cut.fuse`.

The question is only which values are *materialized*, and by whom. Every kernel is built around an
anchor (a convolution, a pool, a reduction, a copy, or a pointwise result that has to be stored).
Its **store slot** takes what can be computed from the anchor's result the moment it is written:
pointwise ops, partial sums over ``n h w``. A pointwise value that nobody stores is *virtual*: its
readers recompute it in their **load slots**.

::

    before                                        after (BNFF)
    z = conv2d(x, w)                              kernel: conv2d, bn_partial_stats -> z, s, m2
    s, m2 = bn_partial_stats(z)                   kernel: bn_merge_stats           -> mean, var
    mean, var = bn_merge_stats(s, m2)             kernel: bn_normalize, relu, conv2d -> z2
    y = relu(bn_normalize(z, mean, var, ...))     (y is virtual: no memory)
    z2 = conv2d(y, w2)

What may join is a property of an op's kind (see `bngen.ir.ops`), and asked in this order:

============ ===================================================================================
`conversions` a graph without the casts that cost nothing, and kernels with them
`levels`     which of the paper's restructurings are on
`dataflow`   what is known of a graph before anything is decided
`state`      what has been decided so far
`legality`   *may* two ops share a kernel: ordered rules, each with the reason it refuses for
`profit`     does it *pay*: sweeps over feature maps, and ops computed again
`slots`      *do* it: the load and store slots of one kernel
`precedence` which kernel has to wait for which, while kernels grow
`cut`        the greedy walk over the graph that asks all of these
`order`      in which call and after whom a kernel runs, and its number
============ ===================================================================================
"""
