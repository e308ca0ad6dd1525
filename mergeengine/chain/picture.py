"""A chain as a picture: Mermaid for Markdown, DOT for Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from mergeengine.chain.chain import Chain, Merge

_MERMAID = {
    "merge": ('["', '"]'),
    "command": ('[/"', '"/]'),
    "external": ('{{"', '"}}'),
    "evaluation": ('(["', '"])'),
}
_DOT = {
    "merge": "box",
    "command": "parallelogram",
    "external": "hexagon",
    "evaluation": "oval",
}


def mermaid(chain: Chain) -> str:
    """``flowchart``: a shape for each kind of step, cylinders for models from outside."""
    names = _names(chain)
    lines = ["flowchart LR"]
    for text, name in names.items():
        if text in {step.id for step in chain.steps}:
            opening, closing = _MERMAID[chain[text].kind]
            lines.append(f"    {name}{opening}{_label(chain, text)}{closing}")
        else:
            lines.append(f'    {name}[("{_plain(text)}")]')
    lines += [f"    {names[taken]} --> {names[step]}" for taken, step in _edges(chain)]
    return "\n".join(lines)


def dot(chain: Chain) -> str:
    """``digraph``, the same."""
    ids = {step.id for step in chain.steps}
    lines = ["digraph {", "    rankdir=LR"]
    for text in _names(chain):
        label = _label(chain, text) if text in ids else _plain(text)
        shape = _DOT[chain[text].kind] if text in ids else "cylinder"
        lines.append(f'    "{_plain(text)}" [label="{label}", shape={shape}]')
    lines += [f'    "{_plain(a)}" -> "{_plain(b)}"' for a, b in _edges(chain)]
    return "\n".join([*lines, "}"])


def _label(chain: Chain, step: str) -> str:
    fused = step in {each.id for each in chain.fused()}
    return f"{step} (not written)" if fused else step


def _edges(chain: Chain) -> Iterator[tuple[str, str]]:
    for step in chain.steps:
        for taken in (*_models(chain, step.id), *step.uses):
            yield taken, step.id


def _models(chain: Chain, step: str) -> tuple[str, ...]:
    """Models from outside that a step takes, by the names that the chain gives them."""
    work = chain[step].work
    if not isinstance(work, Merge):
        return chain[step].models
    names = {reference.text: name for name, reference in chain.models.items()}
    taken = [each.text for reference in work.plan.merged for each in reference.each()]
    outside = (text for text in taken if text not in chain[step].uses)
    return tuple(dict.fromkeys(names.get(text, text) for text in outside))


def _names(chain: Chain) -> dict[str, str]:
    """Everything that is drawn, and a word for each that both languages take."""
    edges = list(_edges(chain))
    texts = dict.fromkeys([text for edge in edges for text in edge])
    texts |= dict.fromkeys(step.id for step in chain.steps)
    return {text: f"n{number}" for number, text in enumerate(texts)}


def _plain(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")
