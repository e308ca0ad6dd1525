"""Tensor algebra without tensors: nodes, shapes, dtypes. Nothing here reads data or knows torch."""
