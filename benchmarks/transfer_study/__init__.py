"""The study of `make study`: the papers' comparisons on a lineage that is trained on the spot."""
