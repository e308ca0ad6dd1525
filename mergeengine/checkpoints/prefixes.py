"""Names that differ in what stands before them: a headless model, a wrapper, an older release.

``bert.encoder...`` is ``encoder...`` in a model that was saved without its head, and
``model.language_model...`` was ``language_model.model...``. Such prefixes are found from the two
sets of names; nothing is known of architectures.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

_LEAST = 2  # tensors: one alone may be chance
_MOST_PARTS = 3
_MOST_PAIRS = 8
# Words for "the model inside": one such prefix may stand for another. Any word may be left out or
# added, since it is how the model inside is called in its wrapper.
_WRAPPERS = {
    "model", "language_model", "text_model", "base_model", "transformer", "module", "_orig_mod",
    "backbone", "vision_model", "vision_tower", "visual", "bert", "roberta", "llm",
}  # fmt: skip

Pair = tuple[str, str]
"""What stands before a name in the target, and what stands there in the other model."""


def find_prefixes(missing: Mapping[str, Shape], unused: Mapping[str, Shape]) -> tuple[Pair, ...]:
    """Pairs of prefixes by which names of the target that another model lacks (``missing``) are
    found among its names that the target lacks (``unused``).

    A pair must find several tensors of the same shape, and most of what it could; none may compete
    with one as good.
    """
    left, free = dict(missing), dict(unused)
    found: list[Pair] = []
    while left and free and len(found) < _MOST_PAIRS:
        best = _best(left, free)
        if best is None:
            break
        found.append(best)
        before, instead = best
        for name in [name for name in left if name.startswith(before)]:
            if free.pop(instead + name[len(before) :], None) is not None:
                del left[name]
    return tuple(found)


def _best(missing: Mapping[str, Shape], unused: Mapping[str, Shape]) -> Pair | None:
    pairs = [
        (before, instead)
        for before in _prefixes(missing)
        for instead in _prefixes(unused)
        if before != instead and _plausible(before, instead)
    ]
    counts: Counter[Pair] = Counter()
    for name, shape in missing.items():
        for before, instead in pairs:
            if name.startswith(before) and unused.get(instead + name[len(before) :]) == shape:
                counts[before, instead] += 1
    if not counts:
        return None
    most = max(counts.values())
    # Of pairs that say the same, the shortest: `a.b.` for `b.` is `a.` for nothing.
    best = sorted((pair for pair in counts if counts[pair] == most), key=lambda p: len("".join(p)))
    pair = best[0]
    if any((other[0] == pair[0]) != (other[1] == pair[1]) for other in best[1:]):
        return None  # an encoder or a decoder? not for us to guess
    possible = sum(name.startswith(pair[0]) for name in missing)
    return pair if most >= _LEAST and 2 * most > min(possible, len(unused)) else None


def _prefixes(names: Iterable[str]) -> list[str]:
    """The beginnings of names: whole components, up to a layer's number, and nothing at all."""
    found: dict[str, None] = {"": None}
    for name in names:
        parts = name.split(".")[:-1]
        prefix = ""
        for part in parts[:_MOST_PARTS]:
            if part.isdecimal():
                break
            prefix += f"{part}."
            found[prefix] = None
    return list(found)


def _plausible(before: str, instead: str) -> bool:
    if not before or not instead:
        return True
    words = [*before.split("."), *instead.split(".")]
    return all(word in _WRAPPERS for word in words if word)
