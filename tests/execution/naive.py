"""The naive value of an expression: whole tensors in memory, float64, torch's own operations."""

import torch
from torch import Tensor

from mergeengine.execution.kernels import TORCH_DTYPES
from mergeengine.lazy.nodes import Node


def oracle(node: Node) -> Tensor:
    """The value of an expression in float64, whole tensors in memory, torch's own operations."""
    inputs = [oracle(child) for child in node.inputs]
    match node.op:
        case "stored":
            tensor = node.stored
            data = tensor.file.path.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
            if not data:
                return torch.zeros(node.shape, dtype=torch.float64)
            flat = torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[tensor.dtype.name])
            return flat.view(node.shape).to(torch.float64)
        case "constant":
            return torch.full(node.shape, node.value, dtype=torch.float64)
        case "slice":
            return inputs[0][tuple(slice(a, b) for a, b in node.attributes[0])]
        case "permute":
            return inputs[0].permute(node.attributes)
        case "take":
            dimension, indices = node.attributes
            padded = torch.cat(
                [inputs[0], torch.zeros_like(inputs[0].narrow(dimension, 0, 1))], dimension
            )
            last = padded.shape[dimension] - 1
            index = torch.tensor([last if i < 0 else i for i in indices], dtype=torch.int64)
            return padded.index_select(dimension, index)
        case "concat":
            return torch.cat(inputs, node.attributes[0])
        case "repeat":
            places = [
                (torch.arange(size) + first) // factor
                for size, (factor, first) in zip(node.shape, node.attributes, strict=True)
            ]
            return inputs[0][torch.meshgrid(*places, indexing="ij")]
        case "product":
            return inputs[0] @ inputs[1]
        case "sum":
            return inputs[0].sum()
        case "row_sum":
            dims = tuple(range(node.attributes[0], inputs[0].ndim))
            return inputs[0].sum(dims, keepdim=True) if dims else inputs[0]
        case "column_sum":
            return inputs[0].sum(0, keepdim=True)
        case "block_max":
            result = torch.zeros(node.shape, dtype=torch.float64)
            for place in torch.cartesian_prod(*(torch.arange(n) for n in node.shape)).tolist():
                box = (
                    slice(p * f, (p + 1) * f) for p, f in zip(place, node.attributes, strict=True)
                )
                result[tuple(place)] = inputs[0][tuple(box)].abs().max()
            return result
        case "kth_magnitude":
            ordered = inputs[0].abs().reshape(-1).sort(descending=True).values
            return ordered[node.attributes[0] - 1]
        case "low_rank":
            u, s, v = torch.linalg.svd(inputs[0], full_matrices=False)
            k = node.attributes[0]
            return (u[:, :k] * s[:k]) @ v[:k]
        case "where":
            return torch.where(inputs[0].ne(0), inputs[1], inputs[2])
        case op:
            return getattr(torch, op)(*inputs).to(torch.float64)
