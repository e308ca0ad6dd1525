"""Operations that need a tensor complete in memory."""

import torch
from torch import Tensor

from mergeengine.lazy.nodes import Node


def run_whole(node: Node, operand: Tensor) -> Tensor:
    """The value of a whole node. ``operand`` is a matrix and may be overwritten."""
    rank: int = node.attributes[0]
    left, values, right = torch.linalg.svd(operand, full_matrices=False)
    left = left[:, :rank].mul_(values[:rank])
    return torch.matmul(left, right[:rank], out=operand)
