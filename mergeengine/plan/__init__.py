"""The plan: what the user asked for, read from YAML, checked, and frozen."""

from mergeengine.plan.load import load_plan, parse_plan
from mergeengine.plan.plan import Plan, Source

__all__ = ["Plan", "Source", "load_plan", "parse_plan"]
