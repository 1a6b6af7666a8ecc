"""What several processes compute together: the *ranks* of a program.

All ranks run one program, each on its own share of the data; where they meet, they do so in the
same order. Who they are is said when the program is run, see ``bngen.connect``.
"""

from __future__ import annotations

from bngen.lang.emission import emit
from bngen.lang.tensor import Tensor
from bngen.lang.trace import error
from bngen.lang.traced import check_tensor
from bngen.lang.types import flag


def all_reduce(input: Tensor, average: bool = False, group: str = "") -> Tensor:
    """The sum of what all ranks have, element by element; each of them gets it.

    A gradient is that of the sum of all ranks' results: what arrives at the ranks is summed, too.

    Args:
        input: a tensor of numbers, of one shape and element type on all ranks.
        average: divide by the number of ranks; for floating-point tensors.
        group: the name of those who take part; ``bngen.connect`` says who they are.

    Raises:
        ProgramError: for bool, for an average of integers, for a group that is no name.
    """
    check_tensor("all_reduce", "input", input)
    return emit(
        "all_reduce", input, average=flag("all_reduce", "average", average),
        group=group_name("all_reduce", group),
    )  # fmt: skip


def group_name(label: str, group: str) -> str:
    """The name of a group of ranks; raises `ProgramError` for what is none."""
    if not isinstance(group, str):
        hint = "give a name, and bngen.connect(module, {name: process_group})"
        raise error(f"{label}: group={group!r:.60} is no name", hint)
    return group
