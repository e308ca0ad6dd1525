"""Weights that torch saved (.bin, .pt, .pth, .ckpt), by their headers alone and without torch.

A torch file is a pickle, which says what tensors there are, and storages, which hold their bytes.
A pickle is a program; here it is read for what it says and none of it is run (see `unpickler`).
"""

from mergeengine.checkpoints.torch_files.torch_file import TorchFile, read_torch_file

__all__ = ["TorchFile", "read_torch_file"]
