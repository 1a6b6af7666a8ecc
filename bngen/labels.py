"""Labels of results: which are gradients, and in what form a call hands its results out.

In: what a graph says of its outputs. Out: the same answer for a call that is traced and for one
that is run. Nobody else makes or reads the mark of a gradient.

=========================== ========== =====================================
labels                      in a tuple a call returns
=========================== ========== =====================================
none                        no         its result; ``{}`` where it has none
none                        yes        a tuple
for each                    either     a dict
a value's, then gradients'  no         a tuple of the value and a dict
=========================== ========== =====================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VALUE = "value"
"""The label of what was differentiated, beside its gradients."""
_GRADIENT = "grad:"


def gradient_label(name: str) -> str:
    """The label of the gradient with respect to the input of that name."""
    return _GRADIENT + name


def handed_out(results: Sequence[Any], labels: Sequence[str], in_tuple: bool) -> Any:
    """What a call returns; see the table above.

    Args:
        results: in the order of the graph's outputs.
        labels: one for each, or none at all.
        in_tuple: whether the call returns a tuple even of a single result.
    """
    if not labels:
        if results or in_tuple:
            return results[0] if len(results) == 1 and not in_tuple else tuple(results)
        return {}
    gradients = all(label.startswith(_GRADIENT) for label in labels[1:])
    if in_tuple or labels[0] != VALUE or not gradients:
        return dict(zip(labels, results, strict=True))
    names = (label.removeprefix(_GRADIENT) for label in labels[1:])
    return results[0], dict(zip(names, results[1:], strict=True))
