"""Operations that need a tensor complete in memory."""

import torch
from torch import Tensor

from mergeengine.compiler.schedule import PATCH
from mergeengine.lazy.nodes import Node


def run_whole(node: Node, operand: Tensor) -> Tensor:
    """The value of a whole node. ``operand`` may be overwritten."""
    if node.op == "row_rank":
        return _row_rank(operand)
    if node.op == "joint_low_rank":
        return _joint_low_rank(operand.view(-1, *node.shape))
    left, values, right = torch.linalg.svd(operand, full_matrices=False)
    if node.op == "isotropic":
        return torch.matmul(left.mul_(values.mean()), right, out=operand)
    rank: int = node.attributes[0]
    left = left[:, :rank].mul_(values[:rank])
    return torch.matmul(left, right[:rank], out=operand)


def _row_rank(operand: Tensor) -> Tensor:
    """Places of the magnitudes in each row, a few rows at a time."""
    width = operand.shape[-1]
    places = torch.arange(width, device=operand.device).to(operand.dtype)
    for rows in torch.split(operand.view(-1, width), max(1, PATCH // width)):
        order = rows.abs().sort(dim=-1, stable=True).indices
        rows.scatter_(-1, order, places.expand(rows.shape))
    return operand


def _joint_low_rank(matrices: Tensor) -> Tensor:
    """Of ``count`` matrices (count, rows, columns) the leading singular vectors, as many of each as
    together are a matrix's rank, made orthogonal to those of the others."""
    count, rows, columns = matrices.shape
    rank = max(1, min(rows, columns) // count)
    lefts = matrices.new_empty(rows, count * rank)
    rights = matrices.new_empty(count * rank, columns)
    values = matrices.new_empty(count * rank)
    for number, matrix in enumerate(matrices):
        place = slice(number * rank, (number + 1) * rank)
        left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
        lefts[:, place], rights[place] = left[:, :rank], right[:rank]
        values[place] = singular[:rank]
        del left, singular, right
    lefts = _nearest_orthogonal(lefts).mul_(values)
    return torch.matmul(lefts, _nearest_orthogonal(rights))


def _nearest_orthogonal(vectors: Tensor) -> Tensor:
    """The matrix with orthonormal rows or columns that is nearest in the Frobenius norm: the
    polar factor (Procrustes)."""
    left, _, right = torch.linalg.svd(vectors, full_matrices=False)
    return torch.matmul(left, right, out=vectors)
