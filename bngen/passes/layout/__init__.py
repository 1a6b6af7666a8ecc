"""Layout: where the channels of every value lie, with copies only where two neighbours disagree.

In: a graph without coarse ops, the vector width, and which of the users' arrays are channels-last.
Out: the graph with ``copy`` nodes (packing of weights, users' order at the borders) and a table
value -> `Layout`; see `assign.assign_layouts`.

Feature maps become `Blocked`; what the user hands in and gets back is `Plain`, in the order that is
declared: a copy that is made anyway is made from that order, or to it, and whoever reads plain
values element by element reads either. A convolution reads a plain input of few channels (an image)
as it is: its load slot writes the scratch tile anyway.

============== =================================================================================
`channel_axes` where index maps and reshapes leave the channels of a map
`cuts`         where the channels of a map are cut by slices of it
`wishes`       what is wanted of values before any of them lies anywhere
`state`        where the values lie that were met so far; their copies
`convolutions`, `pointwise`, `reductions`, `views`: the rules, each for the ops of a family
`assign`       which rule an op has, and the walk over the graph that asks them
============== =================================================================================
"""
