"""What it takes to write the residual stream in another basis."""

import math

from tuneprune.structure.space import PruningSpace


def added_by_rotating(space: PruningSpace, bases: int, width: int) -> int:
    """Parameters that `bases` bases of a stream of `width` kept dims put into a model.

    Every change of basis takes a matrix on the skip connection that crosses it. A head that was one tensor with the
    embedding becomes its own: the last norm's weight is folded into it.
    """
    heads = 0
    for param in space.tied.values():
        owned = {piece.dim for group in space.groups for piece in group.slices if piece.param == param}
        heads += math.prod(width if dim in owned else size for dim, size in enumerate(space.shapes[param]))
    return heads + (bases - 1) * width**2
