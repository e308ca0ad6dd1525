"""Making the output of one step: a merge, a program's model, or an evaluation."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeengine.chain.chain import Chain, Command, Evaluation, Merge, Step
from mergeengine.chain.templates import OUTPUT, PYTHON, SCRATCH, filled
from mergeengine.errors import MergeEngineError, PlanError, StepError
from mergeengine.output.manifest import Manifest, read_manifest
from mergeengine.output.workspace import Workspace
from mergeengine.workflow.chain.commands import Call, call, environment_of
from mergeengine.workflow.chain.evaluation import (
    RESULTS,
    Results,
    arguments_of,
    gather_results,
    read_results,
)
from mergeengine.workflow.chain.inputs import Inputs
from mergeengine.workflow.chain.merges import Merges
from mergeengine.workflow.chain.sealing import seal
from mergeengine.workflow.chain.survey import identity_of
from mergeengine.workflow.existing import check_apart
from mergeengine.workflow.measure import Meter
from mergeengine.workflow.produce import Progress, look_at, produce
from mergeengine.workflow.run import job_of

_LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a step that was to be made; ``made`` is False where it was there already."""

    manifest: Manifest
    made: bool = True
    warnings: tuple[str, ...] = ()
    measured: Results = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes steps whose inputs are there. ``line`` is told each line that a program writes."""

    chain: Chain
    inputs: Inputs
    merges: Merges
    allow_commands: bool
    line: Callable[[str, str], None]
    progress: Progress | None

    def make(self, step: Step, parts: dict[str, Any], *, replace: bool, anew: bool = False) -> Made:
        """Make a step's output. With ``replace`` what is there is replaced, with ``anew`` even
        where it is what would be made."""
        if isinstance(step.work, Merge):
            return self._merge(step, replace=replace, anew=anew)
        self.check_allowed([step])
        return self._program(step, parts)

    def check_allowed(self, steps: list[Step]) -> None:
        """PlanError where programs would be run that nobody has allowed."""
        if self.allow_commands or not steps:
            return
        listed = [f"    {step.id}: {self.described(step)}" for step in steps]
        raise PlanError(
            "these steps run programs:\n"
            + "\n".join(listed)
            + "\n  read what they do; --allow-commands allows them"
        )

    def described(self, step: Step) -> str:
        """A command as it is written, on one line."""
        if isinstance(step.work, Command):
            return " ".join(
                each if each.split() == [each] else repr(each) for each in step.work.arguments
            )
        assert isinstance(step.work, Evaluation)
        return f"lm_eval on {step.work.model}: {', '.join(step.work.tasks)}"

    def log_of(self, step: Step) -> Path:
        return self.chain.output_root / "logs" / f"{step.id}.log"

    def _merge(self, step: Step, *, replace: bool, anew: bool) -> Made:
        with Meter() as meter, self.merges.prepared(step) as prepared:
            job = job_of(prepared)
            if replace and not anew:
                replace = look_at(job).state != "up to date"
            (produced,), _ = produce(
                [job],
                lambda _: prepared.schedule,
                meter,
                self.merges.settings,
                force=replace,
                progress=self.progress,
            )
            warnings = (*prepared.warnings, *produced.warnings)
        manifest = read_manifest(step.output)
        assert manifest is not None
        return Made(manifest, produced.made, warnings)

    def _program(self, step: Step, parts: dict[str, Any]) -> Made:
        models = [self.inputs.open(ref, weights) for _, ref, weights in self.inputs.of(step)]
        check_apart(step.output, models)
        with Workspace(step.output) as workspace:
            workspace.start_over()
            scratch = workspace.scratch
            scratch.mkdir(exist_ok=True)
            self._call(step, self._arguments(step, workspace, scratch), workspace, scratch)
            try:
                measured = self._check(step, workspace.files)
                manifest = seal(
                    workspace.files,
                    step.id,
                    identity_of(parts),
                    parts,
                    model=isinstance(step.work, Command),
                )
            except MergeEngineError as error:
                raise StepError(
                    f"{step.position}: step `{step.id}`: {error}. What it left is in "
                    f"{workspace.files}, what it said in {self.log_of(step)}"
                ) from error
            workspace.install()
        return Made(manifest, measured=measured)

    def _arguments(self, step: Step, workspace: Workspace, scratch: Path) -> list[str]:
        own = {OUTPUT: str(workspace.files), SCRATCH: str(scratch), PYTHON: sys.executable}
        value = self._value(step, own)
        if isinstance(step.work, Evaluation):
            model = Path(value(step.work.model))
            return arguments_of(step.work, model, self.chain.folder, workspace.files)
        assert isinstance(step.work, Command)
        return [filled(text, value) for text in step.work.arguments]

    def _value(self, step: Step, own: dict[str, str]) -> Callable[[str], str]:
        """The folder that a name stands for."""

        def value(name: str) -> str:
            if name in own:
                return own[name]
            if name in step.uses:
                return str(self.chain[name].output)
            return str(self.inputs.folder(self.inputs.reference(name, step)))

        return value

    def _call(self, step: Step, arguments: list[str], workspace: Workspace, scratch: Path) -> None:
        work = step.work
        own = {
            "MERGEENGINE_STEP": step.id,
            "MERGEENGINE_OUTPUT": str(workspace.files),
            "MERGEENGINE_SCRATCH": str(scratch),
        }
        env: dict[str, str] = {}
        pass_env: tuple[str, ...] = ()
        if isinstance(work, Command):
            value = self._value(
                step, {"output": own["MERGEENGINE_OUTPUT"], "scratch": str(scratch)}
            )
            env = {name: filled(text, value) for name, text in work.env.items()}
            pass_env = work.pass_env
        else:
            workspace.files.mkdir()
        last: list[str] = []

        def tell(text: str) -> None:
            last.append(text)
            del last[:-_LAST_LINES]
            self.line(step.id, text)

        began = time.monotonic()
        log = self.log_of(step)
        try:
            environment = environment_of(env, pass_env, own)
            code = call(
                Call(arguments, self.chain.folder, environment, log, workspace.lock_descriptor),
                tell,
            )
        except StepError as error:
            raise StepError(f"{step.position}: step `{step.id}`: {error}") from error
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            seconds = time.monotonic() - began
            said = "".join(f"\n    {line}" for line in last)
            raise StepError(
                f"{step.position}: step `{step.id}` failed with {how} after {seconds:.3g} s; all "
                f"that it said is in {log}{', the last of it:' if said else ''}{said}"
            )

    def _check(self, step: Step, folder: Path) -> Results:
        """What an evaluation measured. StepError where a program left nothing of use."""
        if isinstance(step.work, Evaluation):
            return gather_results(folder)
        if not folder.is_dir():
            raise StepError(f"it ended with 0 but made no folder {{output}} ({folder})")
        return {}


def measured_by(step: Step) -> Results:
    """What an evaluation that is done measured; nothing for other steps."""
    if isinstance(step.work, Evaluation) and (step.output / RESULTS).is_file():
        return read_results(step.output)
    return {}
