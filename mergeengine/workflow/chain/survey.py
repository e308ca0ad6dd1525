"""What each step's output is now: as it should be, out of date and why, or not the chain's.

Judged by content: what a step was made of, as the chain's lock has it, is compared with what it
would be made of now. When a file was written plays no part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergeengine.chain.chain import Chain, Command, Evaluation, External, Merge, Step
from mergeengine.checkpoints.checkpoint import open_checkpoint
from mergeengine.errors import CheckpointError, VerificationError
from mergeengine.output.manifest import Manifest, read_manifest
from mergeengine.values.digests import digest_of
from mergeengine.workflow.chain.inputs import Inputs
from mergeengine.workflow.chain.records import Record, differences
from mergeengine.workflow.chain.sealing import content_of, content_of_model
from mergeengine.workflow.existing import quick_changes
from mergeengine.workflow.prepare import RESULT_VERSION

State = Literal["up to date", "to do", "after others", "removed", "fused", "awaited", "refused"]


@dataclass(frozen=True, slots=True)
class Look:
    """The state of a step, and the reason in a sentence.

    ``parts`` is what it would be made of, ``content`` what its output holds; each is None as long
    as nobody can know it. ``own``: an output is there that this chain made.
    """

    state: State
    reason: str
    parts: dict[str, Any] | None = None
    content: str | None = None
    own: bool = False


class Survey:
    """Looks at the steps of a chain, given the records of its lock."""

    def __init__(
        self,
        chain: Chain,
        inputs: Inputs,
        records: Mapping[str, Record],
        is_up_to_date: Callable[[Step], bool],
    ) -> None:
        """``is_up_to_date`` judges the output of a merge that the lock does not know."""
        self.is_up_to_date = is_up_to_date
        self.chain = chain
        self.inputs = inputs
        self.records = records
        self.fused = {step.id for step in chain.fused()}

    def look(self, step: Step, contents: Mapping[str, str | None]) -> Look:
        """The state of a step whose inputs hold ``contents``.

        Raises CheckpointError or PlanError where something that it takes is not there.
        """
        unknown = [used for used in step.uses if contents.get(used) is None]
        if unknown:
            reason = f"it takes what {' and '.join(unknown)} will be"
            return Look("after others", reason, own=self._is_own(step))
        parts = self.parts(step, contents)
        record = self.records.get(step.id)
        if step.id in self.fused:
            content = f"merge:{digest_of(parts)}"
            users = ", ".join(user.id for user in self.chain.users(step.id))
            return Look("fused", f"never written: it is a part of {users}", parts, content)
        if isinstance(step.work, External):
            return self._external(step, parts, record)
        return self._made(step, parts, record)

    def parts(self, step: Step, contents: Mapping[str, str | None]) -> dict[str, Any]:
        """What a step is made of: see ``Record``."""
        parts: dict[str, Any] = {"kind": step.kind}
        work = step.work
        if isinstance(work, Merge):
            parts["plan"] = digest_of([work.plan.name, work.plan.identity_document])
            parts["version"] = RESULT_VERSION
        elif isinstance(work, Command):
            parts |= {"command": list(work.arguments), "env": dict(work.env)}
        elif isinstance(work, Evaluation):
            parts |= {"tasks": list(work.tasks), "arguments": list(work.arguments)}
        files = self.inputs.files(step)
        models = {
            name: self.inputs.content(reference, weights)
            for name, reference, weights in self.inputs.of(step)
        }
        steps = {used: contents[used] for used in step.uses}
        named = {"files": files, "models": models, "steps": steps}
        return parts | {name: part for name, part in named.items() if part}

    def manifest(self, step: Step) -> Manifest | None:
        """The manifest of a step's output; None where there is no output, or none of ours."""
        try:
            return read_manifest(step.output) if step.output.is_dir() else None
        except VerificationError:
            return None

    def _is_own(self, step: Step) -> bool:
        manifest, record = self.manifest(step), self.records.get(step.id)
        return manifest is not None and record is not None and manifest.identity == record.identity

    def _external(self, step: Step, parts: dict[str, Any], record: Record | None) -> Look:
        if not step.output.exists():
            return Look("awaited", f"there is no {step.output} yet", parts)
        try:
            content = content_of_model(open_checkpoint(step.output.absolute()))
        except CheckpointError as error:
            return Look("awaited", f"it is not complete: {error}", parts)
        if record is not None and record.content == content and record.parts != parts:
            changed = ", ".join(differences(record.parts, parts))
            return Look("awaited", f"what is there was made before: {changed}", parts)
        return Look("up to date", "done elsewhere", parts, content)

    def _made(self, step: Step, parts: dict[str, Any], record: Record | None) -> Look:
        output = step.output
        if output.is_symlink():
            return Look("refused", f"{output} is a symbolic link; name the folder itself", parts)
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            if record is not None and record.parts == parts and not step.keep:
                reason = "removed, as `keep: false` says; what was made of it is there"
                return Look("removed", reason, parts, record.content)
            return Look("to do", _changes(record, parts) or "there is no output yet", parts)
        manifest = self.manifest(step)
        if manifest is None:
            return Look("refused", f"{output} is there and was not made by mergeengine", parts)
        own = record is not None and manifest.identity == record.identity
        changed = quick_changes(output, manifest)
        if changed is not None:
            return Look("refused", f"{output} was changed by hand: {changed}", parts, own=own)
        content = content_of(manifest)
        if own and record is not None and record.parts == parts:
            return Look("up to date", "what it is made of is unchanged", parts, content, own)
        if manifest.identity == identity_of(parts):
            return Look("up to date", "it is what would be made", parts, content, own)
        if own:
            return Look("to do", _changes(record, parts), parts, own=True)
        if isinstance(step.work, Merge) and self.is_up_to_date(step):
            return Look("up to date", "it is what would be made", parts, content)
        return Look("refused", f"{output} is there and was not made by this chain", parts)


def identity_of(parts: Mapping[str, Any]) -> str:
    """The identity of what a command or an evaluation makes; merges have their own."""
    return digest_of(dict(parts))


def _changes(record: Record | None, parts: dict[str, Any]) -> str:
    return ", ".join(differences(record.parts, parts)) if record is not None else ""
