"""What lies beside the weights of a plan's output: companion files and the model card."""

from importlib.metadata import version

import yaml

from mergeengine.checkpoints.aliases import is_embedding, is_head
from mergeengine.compiler.binding import Binding, BoundTensor
from mergeengine.output.card import MergedModel, model_card, read_licence
from mergeengine.output.companions import Companion, CompanionSet, gather_companions
from mergeengine.plan.plan import Plan
from mergeengine.workflow.models import Models

CARD = "README.md"


def accompany(plan: Plan, models: Models, binding: Binding) -> CompanionSet:
    """Config, tokenizer, generation settings, code, licences, and README.md.

    Small files of hub models are fetched for this.
    """
    gathered = gather_companions(
        target=models.target,
        tokenizer=models.tokenizer,
        config=models.config,
        generation_config=models.generation_config,
        tensors={t.output.name: (t.output.dtype, t.output.shape) for t in binding.tensors},
        own_head=_own_head(binding),
    )
    card = Companion(CARD, _card(plan, models).encode())
    warnings = (*gathered.warnings, *_unknown_to_config(models, binding))
    return CompanionSet((*gathered.files, card), gathered.notes, warnings)


def _own_head(binding: Binding) -> str | None:
    """A head that is not made as the embedding of its shape is: equal before, different now."""
    made: dict[tuple[int, ...], set[object]] = {}
    for tensor in binding.tensors:
        if is_embedding(tensor.output.name):
            made.setdefault(tensor.output.shape, set()).add(_making(tensor))
    for tensor in binding.tensors:
        embeddings = made.get(tensor.output.shape)
        if is_head(tensor.output.name) and embeddings and _making(tensor) not in embeddings:
            return tensor.output.name
    return None


def _making(tensor: BoundTensor) -> object:
    coefficients = [delta.coefficient for delta in tensor.deltas]
    return tensor.output.dtype, tensor.kind, tuple(coefficients)


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
            plan.identity_document, sort_keys=False, allow_unicode=True, width=100
        ),
        references=references,
        version=version("mergeengine"),
    )
