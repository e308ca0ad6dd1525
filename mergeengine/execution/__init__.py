"""Executing a schedule: reading, arithmetic, devices and workers."""
