"""What lies beside the weights of a plan's output: companion files and the model card."""

from collections.abc import Callable, Iterable
from importlib.metadata import version

import yaml

from mergeengine.checkpoints.aliases import is_embedding, is_head
from mergeengine.compiler.bound import Binding
from mergeengine.compiler.graph import Graph, OutputTensor
from mergeengine.compiler.merging import method_of
from mergeengine.lazy.nodes import Node, walk
from mergeengine.lazy.stored import Stored
from mergeengine.output.card import MergedModel, model_card, read_licence
from mergeengine.output.chat_template import with_chat_template
from mergeengine.output.companions import Companion, CompanionSet, gather_companions
from mergeengine.plan.plan import DEFAULT_METHOD, Plan
from mergeengine.plan.variables import escaped
from mergeengine.values.digests import digest_of
from mergeengine.workflow.models import Models

CARD = "README.md"


def accompany(plan: Plan, models: Models, binding: Binding) -> CompanionSet:
    """Config, tokenizer, generation settings, code, licences, and README.md.

    Small files of hub models are fetched for this.
    """
    gathered = gather_companions(
        target=models.target.beside,
        tokenizer=models.output_tokenizer,
        config=models.config,
        generation_config=models.generation_config,
        tensors={t.output.name: (t.output.dtype, t.output.shape) for t in binding.tensors},
        own_head=own_head(binding.graph),
        quantised=plan.output.quantization == "keep",
    )
    if plan.output.chat_template is not None:
        merged = (*([models.target] if plan.own_target else []), *models.fts)
        gathered = with_chat_template(gathered, plan.output.chat_template, merged)
    card = Companion(CARD, _card(plan, models).encode())
    warnings = (*gathered.warnings, *_unknown_to_config(models, binding))
    return CompanionSet((*gathered.files, card), gathered.notes, warnings)


def own_head(graph: Graph) -> str | None:
    """An output head that is not computed as the embedding of its shape is: no longer tied."""
    made: dict[tuple[int, ...], set[str]] = {}
    for tensor in graph.tensors:
        if is_embedding(tensor.name):
            made.setdefault(tensor.shape, set()).add(_making(tensor))
    for tensor in graph.tensors:
        embeddings = made.get(tensor.shape)
        if is_head(tensor.name) and embeddings and _making(tensor) not in embeddings:
            return tensor.name
    return None


def _making(tensor: OutputTensor) -> str:
    """How a tensor is computed, and from which models, whatever its name in them."""
    return node_digests([tensor.node], lambda held: [held.source])[tensor.node] + tensor.dtype.name


def place_of(tensor: Stored) -> list[object]:
    """Which part of its checkpoint a leaf is: what is stored under one name may be seen as several
    tensors."""
    return [tensor.name, tensor.offset, list(tensor.shape)]


def node_digests(
    roots: Iterable[Node], input_of: Callable[[Stored], list[object]]
) -> dict[Node, str]:
    """A digest of each node: its operation and its operands; ``input_of`` says what a leaf is."""
    digests: dict[Node, str] = {}
    for node in walk(*roots):
        if node.op == "stored":
            parts: list[object] = [input_of(node.stored)]
        elif node.op == "constant":
            parts = [node.value.hex(), list(node.shape)]
        else:
            parts = [repr(_plain(node.attributes)), [digests[child] for child in node.inputs]]
        digests[node] = digest_of([node.op, *parts])
    return digests


def _plain(attribute: object) -> object:
    """An attribute without addresses in memory: functions by their names."""
    if isinstance(attribute, tuple):
        return tuple(_plain(each) for each in attribute)
    if callable(attribute):
        return f"{attribute.__module__}.{getattr(attribute, '__qualname__', attribute)}"
    return attribute


def _unknown_to_config(models: Models, binding: Binding) -> list[str]:
    """Copied tensors beside another model's config: it may not know them."""
    copied = [tensor.output.name for tensor in binding.tensors if tensor.kind == "copied"]
    if not copied or models.config in models.fts:
        return []
    return [
        f"{len(copied)} tensors were copied from source_ft, but config.json is that of "
        f"{models.config}, which may not know them (they would be ignored when the model is "
        f"loaded): {', '.join(copied)}. `output.config: source_ft` takes the fine-tune's config"
    ]


def _card(plan: Plan, models: Models) -> str:
    references = [
        MergedModel(role, model.reference.text, model.revision, read_licence(model))
        for role, model in models.roles()
    ]
    return model_card(
        name=plan.name,
        plan_text=yaml.safe_dump(
            escaped(plan.identity_document), sort_keys=False, allow_unicode=True, width=100
        ),
        references=references,
        version=version("mergeengine"),
        method=None if plan.method == DEFAULT_METHOD else (plan.method, method_of(plan).paper),
    )
