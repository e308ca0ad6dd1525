"""Whether a plan's rules fit the tensors that they are for: one that matches none is a slip."""

from collections.abc import Iterator, Sequence
from re import findall

from mergeengine.compiler.correspondence import Counterparts
from mergeengine.errors import PlanError
from mergeengine.plan.plan import Plan, Source
from mergeengine.values.anatomy import Anatomy, TensorFacts
from mergeengine.values.kinds import ROLES
from mergeengine.values.masks import MaskEntry
from mergeengine.values.nearest import did_you_mean, nearest
from mergeengine.values.parameters import Parameter
from mergeengine.values.positions import Position
from mergeengine.values.renaming import ROLES_OF_NAMES
from mergeengine.values.selectors import Rule, Selector, first_match

Listed = tuple[str, Position | None, Selector]
"""What a rule is called, where it stands, and what it selects."""


def check_rules(plan: Plan, anatomy: Anatomy, tensors: Sequence[TensorFacts]) -> list[str]:
    """PlanError for every rule that matches no tensor, and for kinds that the model has not; as
    warnings where `on_unmatched` says so.

    What is inside `not` or `any` counts as well: a slip there would go unseen.
    """
    checked: dict[Selector, str | None] = {}
    problems: list[str] = []
    for what, position, selector in _rules(plan):
        for part in selector.parts():
            if part not in checked:
                checked[part] = _problem(part, anatomy, tensors)
            if checked[part] is not None:
                problems.append(f"{position}: this {what} {checked[part]}")
                break
    if problems and plan.on_unmatched == "error":
        raise PlanError("\n".join(problems))
    return problems


def check_parameters(plan: Plan, anatomy: Anatomy) -> None:
    """PlanError for every parameter that cannot be resolved for the layers of the target."""
    problems = [text for parameter in _parameters(plan) for text in parameter.problems(anatomy)]
    if problems:
        raise PlanError("\n".join(problems))


def check_renames(source: Source, base: Counterparts, ft: Counterparts) -> None:
    """PlanError for every `rename` of a source that fits no tensor of the models it is for."""
    problems = []
    for rule in source.renames:
        models = [
            m for m, role in zip((base, ft), ROLES_OF_NAMES, strict=True) if role in rule.roles
        ]
        if all(rule in model.unmatched for model in models):
            names = list(models[0].other.tensors)
            word = max(findall(r"\w+", rule.pattern), key=len, default="")
            near = nearest(word, _parts(names), limit=2, cutoff=0.5)
            hint = " and ".join(f"`{name}`" for name in near)
            told = f"tensors have names with {hint}" if near else f"its tensors are {names[0]}, ..."
            problems.append(
                f"{rule.position}: this rename fits no tensor of {models[0].other} ({rule.text}); "
                f"{told} (`mergeengine inspect --tensors` lists them)"
            )
    if problems:
        raise PlanError("\n".join(problems))


def _rules(plan: Plan) -> Iterator[Listed]:
    for entry in _masks(plan):
        yield "mask", entry.position, entry.selector
    for rule in plan.output.dtype.rules:
        yield "dtype rule", rule.position, rule.selector
    for key, rules in _numbers(plan):
        for each in rules:
            if not each.selector.selects_all:
                yield f"rule of `{key}`", each.position, each.selector


def _numbers(plan: Plan) -> Iterator[tuple[str, Sequence[Rule]]]:
    """Every list of rules that decide a number, and the key that it stands under."""
    for source in plan.sources:
        yield "scaling", source.scaling.rules
    for parameter in _parameters(plan):
        for rules in parameter.lists():
            yield parameter.key, rules


def _masks(plan: Plan) -> Iterator[MaskEntry]:
    for masks in (plan.masks, *(source.masks for source in plan.sources)):
        yield from masks.entries


def _parameters(plan: Plan) -> Iterator[Parameter]:
    for source in plan.sources:
        yield from source.scaling.parameters()
        yield from (each for each in source.parameters.values() if isinstance(each, Parameter))
    yield from (each for each in plan.parameters.values() if isinstance(each, Parameter))
    for entry in _masks(plan):
        yield Parameter("scale", entry.scale, entry.position)


def shadowed(plan: Plan, tensors: Sequence[TensorFacts]) -> list[str]:
    """Rules that match tensors and yet decide none: earlier ones of their list match them all."""
    return [*_shadowed_masks(plan, tensors), *_shadowed_rules(plan, tensors)]


def _shadowed_masks(plan: Plan, tensors: Sequence[TensorFacts]) -> list[str]:
    lists = [masks for masks in (plan.masks, *(s.masks for s in plan.sources)) if masks.entries]
    return [
        f"{entry.position}: this mask ({entry.text}) decides no tensor: earlier entries match all "
        "of its tensors, and the first match wins"
        for masks in lists
        for deciding in [{id(first_match(masks.entries, tensor)) for tensor in tensors}]
        for entry in masks.entries
        if id(entry) not in deciding and _selects(entry, tensors)
    ]


def _shadowed_rules(plan: Plan, tensors: Sequence[TensorFacts]) -> Iterator[str]:
    """Of numbers that differ from tensor to tensor, and of dtypes. The last rule of a number has
    no selector and has to be there, whether something is left for it or not."""
    for key, rules in (("output.dtype", plan.output.dtype.rules), *_numbers(plan)):
        if len(rules) < 2:
            continue
        deciding = {id(first_match(rules, tensor)) for tensor in tensors}
        for rule in rules:
            whole = rule.selector.selects_all
            if id(rule) not in deciding and not whole and _selects(rule, tensors):
                yield (
                    f"{rule.position}: this rule of `{key}` ({rule.selector.text}) decides no "
                    "tensor: earlier ones match all of its tensors, and the first match wins"
                )


def _selects(rule: Rule, tensors: Sequence[TensorFacts]) -> bool:
    """Whether a rule matches any tensor: of one that does not it is told as that."""
    return any(map(rule.selector.matches, tensors))


def _problem(selector: Selector, anatomy: Anatomy, tensors: Sequence[TensorFacts]) -> str | None:
    """What is wrong with a selector, for after ``this mask``; None where it selects a tensor."""
    if selector.kind is not None:
        known = {kind: None for tensor in tensors for kind in sorted(tensor.kinds)}
        for kind in selector.kind:
            if kind not in known and (kind not in ROLES or len(selector.kind) == 1):
                hint = did_you_mean(kind, known)
                if not hint:
                    hint = f"; the model has {', '.join(r for r in ROLES if r in known)}, and"
                    hint += " modules' names (`mergeengine inspect --kinds` lists them)"
                return f"matches no tensor of the kind `{kind}` ({selector.text}){hint}"
    if any(map(selector.matches, tensors)):
        return None
    text = f"matches no tensor ({selector.text})"
    if selector.layers is not None and not any(
        map(Selector(layers=selector.layers).matches, tensors)
    ):
        return f"{text}; {_layers(anatomy)}"
    near: list[str] = []
    names = [tensor.name for tensor in tensors]
    if selector.match is not None and not any(map(Selector(match=selector.match).matches, tensors)):
        for glob in selector.match:
            near.extend(nearest(glob.strip("*."), _parts(names), limit=2, cutoff=0.5))
    if selector.regex is not None and not any(map(Selector(regex=selector.regex).matches, tensors)):
        for regex in selector.regex:
            words = max(findall(r"\w+", regex), key=len, default="")
            near.extend(nearest(words, _parts(names), limit=2, cutoff=0.5))
    if near:
        found = " and ".join(f"`{name}`" for name in dict.fromkeys(near))
        return f"{text}; tensors have names with {found}"
    if _conditions(selector) > 1 and selector.match is None and selector.regex is None:
        return f"{text}; each condition holds for some tensors, but all of them for none"
    shown = ", ".join(names[:3])
    return f"{text}; the target's tensors are {shown}, ... (`mergeengine inspect` lists them)"


def _conditions(selector: Selector) -> int:
    given = (getattr(selector, name) is not None for name in Selector.__slots__)
    return sum(given)


def _layers(anatomy: Anatomy) -> str:
    stacks = anatomy.stacks
    if not stacks:
        return "the target's tensors are in no layers"
    if len(stacks) == 1:
        return f"the target's layers are 0 to {max(stacks.values()) - 1}"
    shown = ", ".join(
        f"{prefix or 'names beginning with '}0 to {count - 1}"
        for prefix, count in list(stacks.items())[:4]
    )
    return f"the target's layers are {shown}{', ...' if len(stacks) > 4 else ''}"


def _parts(names: list[str]) -> list[str]:
    """The words that names are made of: single components, and pairs."""
    words: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for length in (1, 2):
            for start in range(len(parts) - length + 1):
                words[".".join(parts[start : start + length])] = None
    return list(words)
