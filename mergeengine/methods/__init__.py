"""Merge methods, one file each: lazy tensors in, a lazy tensor out."""
