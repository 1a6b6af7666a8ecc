"""``torch.utils.checkpoint`` inside a captured model, as it is in eager.

In: a captured graph. Out: the same graph, whose checkpoints run as the user wrote them. As Dynamo
has them they are for AOTAutograd: called as they stand they would draw other random numbers when
they are computed again, and refuse buffers that the part changes, which are arguments there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch._higher_order_ops.wrap import tag_activation_checkpoint
from torch.utils.checkpoint import checkpoint

from bngen.torch_bridge.sync_batch_norm import name_layers


def as_in_eager(captured: fx.GraphModule) -> None:
    """Let each checkpoint of a graph, and of the parts in it, be eager's."""
    graphs = [m for m in captured.modules() if isinstance(m, fx.GraphModule)]
    for module in graphs:
        found = [n for n in module.graph.nodes if n.target is tag_activation_checkpoint]
        for node in found:
            node.target = checkpointed
        if module is not captured:
            name_layers(module.graph)
        if found or module is not captured:
            module.recompile()


def checkpointed(part: fx.GraphModule, *args: Any, **options: Any) -> Any:
    """A part of a model that is computed again in backward.

    Args:
        part: the part.
        *args: all that it reads, parameters and buffers included.
        **options: of the checkpoint.
    """
    flows = [isinstance(a, Tensor) and a.requires_grad for a in args]

    def run(*given: Tensor) -> Any:
        values = iter(given)
        return part(*(next(values) if f else a for f, a in zip(flows, args, strict=True)))

    if context := part.meta.get("_checkpoint_context_fn"):
        options["context_fn"] = context
    options["use_reentrant"] = False  # as Dynamo takes either kind
    return checkpoint(run, *(a for f, a in zip(flows, args, strict=True) if f), **options)
