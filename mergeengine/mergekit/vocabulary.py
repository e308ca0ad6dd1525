"""The tokenizer of a configuration: whose tokens have rows in the output, and which rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergeengine.mergekit.config import Config
from mergeengine.mergekit.models import Model, Models, check_keys
from mergeengine.mergekit.nodes import mapping, scalar, sequence
from mergeengine.plan.document import Node
from mergeengine.plan.problems import Problems
from mergeengine.values.excerpts import excerpt


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``rows`` is the plan's `vocabulary`; ``donor`` its tokenizer's model, where it is neither
    the base nor the first; ``named``: sources are named by it."""

    rows: Node
    donor: Model | None = None
    named: bool = False


def vocabulary(
    config: Config, models: Models, names: Mapping[Model, str], problems: Problems
) -> Vocabulary:
    """``names`` are the plan's words for the models: `target`, and the names of sources."""
    at = config.method_position
    if config.tokenizer_source is not None:
        rows, donor = _source(config.tokenizer_source, models)
        return Vocabulary(scalar(rows, config.tokenizer_source.position), donor)
    if config.tokenizer is None:
        return Vocabulary(scalar("index", at))
    node = config.tokenizer
    if not isinstance(node.value, dict):
        message = f"`tokenizer`: expected a mapping of keys to values, found {node.described}"
        problems.add(node.position, message)
        return Vocabulary(scalar("index", at))
    check_keys(node, ("source", "tokens", "pad_to_multiple_of"), problems)
    source = node.get("source")
    rows, donor = ("union", None) if source is None else _source(source, models)
    tokens = list(_tokens(node.get("tokens"), models, names, problems))
    padding = node.get("pad_to_multiple_of")
    if padding is not None and padding.value is not None and not _is_count(padding):
        message = f"`pad_to_multiple_of`: expected a whole number, found {padding.described}"
        problems.add(padding.position, message)
    padded = padding is not None and _is_count(padding)
    place = node.position if source is None else source.position
    if not tokens and not padded:
        return Vocabulary(scalar(rows, place), donor)
    entries = {
        "rows": scalar(rows, place),
        "pad_to_multiple_of": padding if padded else None,
        "tokens": sequence(tokens, node.position) if tokens else None,
    }
    return Vocabulary(mapping(entries, node.position), donor, bool(tokens))


def _source(node: Node, models: Models) -> tuple[str, Model | None]:
    if node.value in ("union", "base"):
        return ("union" if node.value == "union" else "tokenizer"), None
    return "tokenizer", models.read(node)


def _is_count(node: Node) -> bool:
    return isinstance(node.value, int) and not isinstance(node.value, bool) and node.value > 0


def _tokens(
    node: Node | None, models: Models, names: Mapping[Model, str], problems: Problems
) -> Iterator[Node]:
    if node is None or node.value is None:
        return
    if not isinstance(node.value, dict):
        message = f"`tokens`: expected a mapping of tokens, found {node.described}"
        problems.add(node.position, message)
        return
    for token, said in node.value.items():
        at = node.keys[token]
        if said.value is not None and not isinstance(said.value, dict):
            message = f"expected {{source: ..., force: ...}}, found {said.described}"
            problems.add(said.position, message)
            continue
        check_keys(said, ("source", "force"), problems)
        source, force = said.get("source"), said.get("force")
        if source is None or source.value is None:
            problems.add(
                at,
                f"`{excerpt(token)}` has no `source`: name the model whose row it gets "
                "(a token that all models have needs no entry)",
            )
            continue
        origin = _origin(source, models, names, problems)
        forced = force is not None and force.value is True
        entries = {
            "token": scalar(token, at),
            "from": origin,
            "force": scalar(True, at) if forced else None,
        }
        yield mapping(entries, at)


def _origin(
    node: Node, models: Models, names: Mapping[Model, str], problems: Problems
) -> Node | None:
    """Where a token's row comes from."""
    if isinstance(node.value, dict) and node.get("kind") is not None:
        kind = node.at(("kind",)).value
        if kind == "zero":
            check_keys(node, ("kind",), problems)
            return scalar("zeros", node.position)
        check_keys(node, ("kind", "model", "token", "token_id"), problems)
        model, token, row = node.get("model"), node.get("token"), node.get("token_id")
        if kind != "model_token" or model is None or (token is None) == (row is None):
            problems.add(
                node.position,
                "expected {kind: zero}, or {kind: model_token, model: ...} with `token` or "
                "`token_id`",
            )
            return None
        of = _name(model, models, names, problems)
        if of is None:
            return None
        text = None if token is None else scalar(token.written, token.position)
        return mapping({"of": of, "token": text, "row": row}, node.position)
    return _name(node, models, names, problems)


def _name(
    node: Node, models: Models, names: Mapping[Model, str], problems: Problems
) -> Node | None:
    model = models.read(node)
    if model is None:
        return None
    if model not in names:
        problems.add(node.position, f"`{model.written}` is none of the models that are merged")
        return None
    return scalar(names[model], node.position)
