"""Chains: steps that use each other's outputs, from YAML to a frozen value."""
