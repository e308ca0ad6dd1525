"""Stored tensors made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mergeengine.execution.kernels import TORCH_DTYPES
from mergeengine.lazy import algebra
from mergeengine.lazy.dtypes import BY_NAME
from mergeengine.lazy.stored import Stored, StoredFile
from mergeengine.lazy.tensor import LazyTensor

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
Store = Callable[[Tensor], LazyTensor]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write a tensor to a file of its own, after an odd number of other bytes."""
    counter = iter(range(10**6))

    def write(tensor: Tensor) -> LazyTensor:
        path = tmp_path / f"tensor{next(counter)}.bin"
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        path.write_bytes(b"header" + data + b"trailer")
        dtype = BY_NAME[NAMES[tensor.dtype]]
        file = StoredFile(path, path.stat().st_size)
        return LazyTensor(
            algebra.stored(Stored("test", path.stem, dtype, tuple(tensor.shape), file, 6))
        )

    return write
