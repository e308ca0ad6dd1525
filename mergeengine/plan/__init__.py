"""The plan: what the user asked for, read from YAML, checked, and frozen."""

from mergeengine.plan.load import load_plan, parse_plan
from mergeengine.plan.plan import Plan, Source
from mergeengine.plan.references import parse_reference

__all__ = ["Plan", "Source", "load_plan", "parse_plan", "parse_reference"]
