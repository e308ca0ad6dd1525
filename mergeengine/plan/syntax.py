"""What PyYAML says about a syntax error, in the words of someone who edits a plan."""

from __future__ import annotations

import re
from typing import Any

from yaml.error import MarkedYAMLError

# What PyYAML's text contains, and our sentence. True: told where the thing begins that is at
# fault, which PyYAML calls the context, and not where reading stopped.
_SENTENCES = [
    (r"found character '\\t'", False, "a tab cannot stand here in YAML; indent with spaces"),
    (
        r"found character '(?P<what>.+)' that cannot start",
        False,
        "a text that begins with {what} must be in quotes",
    ),
    (
        r"found undefined alias '(?P<what>.*)'",
        False,
        "`*{what}` begins with *: a glob must be in quotes",
    ),
    (
        r"expected alphabetic or numeric character, but found",
        True,
        "a text that begins with * or & must be in quotes",
    ),
    (
        r"mapping values are not allowed",
        False,
        "a `:` is not expected here: check the indentation, or put the text in quotes",
    ),
    (r"could not find expected ':'", True, "expected `key: value`"),
    (
        r"expected (?:<block end>|'<document start>'), but found",
        False,
        "this does not fit the lines above; check the indentation",
    ),
    (r"expected ',' or '.', but got '<stream end>'", True, "this bracket is never closed"),
    (
        r"expected ',' or '(?P<what>.)', but",
        False,
        "expected a comma or `{what}` before this",
    ),
    (
        r"sequence entries are not allowed",
        False,
        "a list entry is not expected here; check the indentation",
    ),
    (r"second occurrence", False, "there is an anchor of this name already"),
    (r"expected the node content, but found", False, "a value is expected here"),
    (r"found unexpected (?:end of stream|document sep)", True, "this quote is never closed"),
    (
        r"but found another document",
        False,
        "a plan is one YAML document; remove the second `---`",
    ),
]


def explain_syntax(failure: MarkedYAMLError) -> tuple[Any, str]:
    """PyYAML's mark of the place (None: unknown), and one sentence about it."""
    problem = failure.problem or failure.context or "it cannot be read"
    mark = failure.problem_mark or failure.context_mark
    if mark is not None and mark.buffer and mark.buffer[: mark.pointer].endswith("$"):
        return mark, "between braces or brackets, `${name}` must be in quotes"
    for pattern, at_context, sentence in _SENTENCES:
        found = re.search(pattern, problem)
        if found:
            place = failure.context_mark if at_context and failure.context_mark else mark
            return place, sentence.format(**found.groupdict())
    return mark, f"not valid YAML: {problem}"
