"""Whole jobs, from a plan to a sealed output: prepare, run, verify, lock, clean."""
