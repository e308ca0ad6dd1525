"""Where tensors come from: folders, files and hub models, opened by their headers alone."""

from mergeengine.checkpoints.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
