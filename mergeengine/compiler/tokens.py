"""Which rows the tokens are that masks name by their texts.

They are looked up in the output's tokenizer, whose ids are the output's rows; where its files list
no tokens, in the target's, then in that of the source's fine-tune, and for the plan's own masks in
that of the first that lists any.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mergeengine.checkpoints.checkpoint import Checkpoint
from mergeengine.checkpoints.vocabulary import token_ids, tokens
from mergeengine.errors import PlanError
from mergeengine.plan.plan import Plan
from mergeengine.values.actions import Rows
from mergeengine.values.masks import MaskEntry, Masks
from mergeengine.values.nearest import nearest

Found = Mapping[str, Mapping[str, int]]
"""A tokenizer's model, as the plan names it -> token -> id."""


def look_up_tokens(
    plan: Plan,
    tokenizer: Checkpoint,
    target: Checkpoint,
    fts: Sequence[Checkpoint],
    known: Found | None = None,
) -> tuple[Plan, Found]:
    """The plan with the rows of its tokens, and what was found where. ``known`` is what was found
    before for the same plan: it is not read again.

    PlanError for tokens that are not there, or where no tokenizer lists its tokens.
    """
    before = known or {}
    found: dict[str, dict[str, int]] = {}
    problems: list[str] = []

    def filled(masks: Masks, *models: Checkpoint) -> Masks:
        texts = sorted({text for entry in masks.entries for text in _texts(entry)})
        if not texts:
            return masks
        asked = (
            (model, before.get(str(model)) or token_ids(model, texts))
            for model in dict.fromkeys(models)
        )
        model, ids = next(((m, i) for m, i in asked if i is not None), (None, {}))
        if model is None or len(ids) < len(texts):
            problems.extend(_problems(masks, ids, model, models))
            return masks
        found.setdefault(str(model), {}).update(ids)
        return Masks(tuple(_filled(entry, ids) for entry in masks.entries))

    plan_masks = filled(plan.masks, tokenizer, target, *fts)
    sources = tuple(
        replace(source, masks=filled(source.masks, tokenizer, target, ft))
        for source, ft in zip(plan.sources, fts, strict=True)
    )
    if problems:
        raise PlanError("\n".join(problems))
    return replace(plan, masks=plan_masks, sources=sources), found


def _texts(entry: MaskEntry) -> Iterator[str]:
    for action in entry.actions:
        if isinstance(action, Rows):
            yield from action.texts()


def _filled(entry: MaskEntry, ids: Mapping[str, int]) -> MaskEntry:
    actions = (each.looked_up(ids) if isinstance(each, Rows) else each for each in entry.actions)
    return replace(entry, actions=tuple(actions))


def _problems(
    masks: Masks,
    ids: Mapping[str, int],
    model: Checkpoint | None,
    models: Sequence[Checkpoint],
) -> Iterator[str]:
    if model is None:
        listed = ", ".join(dict.fromkeys(map(str, models)))
        for entry in masks.entries:
            if any(_texts(entry)):
                yield (
                    f"{entry.position}: the tokens of this mask cannot be looked up: no tokenizer "
                    f"of {listed} lists its tokens; write their ids"
                )
        return
    known = [text for text, _ in tokens(model)]
    for entry in masks.entries:
        for text in _texts(entry):
            if text in ids:
                continue
            near = [f"`{each}`" for each in nearest(text, known, limit=3)]
            are = "is" if len(near) == 1 else "are"
            hint = f"; the nearest {are} {' and '.join(near)}" if near else ""
            for other in models:
                elsewhere = token_ids(other, [text]) if other is not model else None
                if elsewhere:
                    hint = f"; in that of {other} it is {elsewhere[text]}: write the id if it is "
                    hint += "that row of the output that is meant"
                    break
            yield f"{entry.position}: the tokenizer of {model} has no token `{text}`{hint}"
