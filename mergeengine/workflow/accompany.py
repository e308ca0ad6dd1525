"""What lies beside the weights of a plan's output: companion files and the model card."""

from importlib.metadata import version

import yaml

from mergeengine.compiler.binding import Binding
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
    )
    card = Companion(CARD, _card(plan, models).encode())
    return CompanionSet((*gathered.files, card), gathered.notes, gathered.warnings)


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
