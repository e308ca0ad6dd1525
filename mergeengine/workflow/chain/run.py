"""Bringing a chain up to date: each step in its turn, where it is not as it should be."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeengine.chain.chain import Chain, Command, Evaluation, External, Merge, Step
from mergeengine.checkpoints.checkpoint import open_checkpoint
from mergeengine.errors import AwaitedError, MergeEngineError, OutputError, PlanError
from mergeengine.output.lock import lock_path
from mergeengine.output.workspace import Workspace
from mergeengine.workflow.chain.inputs import Inputs
from mergeengine.workflow.chain.making import Maker, measured_by
from mergeengine.workflow.chain.merges import Merges
from mergeengine.workflow.chain.records import Record, read_records, write_records
from mergeengine.workflow.chain.results import (
    ChainResult,
    Foreseen,
    Listener,
    Options,
    Outcome,
    StepResult,
)
from mergeengine.workflow.chain.sealing import content_of, content_of_model
from mergeengine.workflow.chain.survey import Look, Survey
from mergeengine.workflow.existing import quick_changes, verify
from mergeengine.workflow.planned import NotFusableError
from mergeengine.workflow.produce import clear_leftovers


def run_chain(
    chain: Chain, options: Options | None = None, listener: Listener | None = None
) -> ChainResult:
    """Make every step's output that is not what it should be, and remove what nobody needs.

    The chain's lock is written after each step. Failures of steps are in the result; what is wrong
    with the whole, and Ctrl-C, is raised. Whatever happens, nothing half-made is under the name of
    an output, and the next run goes on from there.
    """
    return _Run(chain, options or Options(), listener or Listener()).run()


def foresee_chain(chain: Chain, options: Options | None = None) -> list[Foreseen]:
    """The state of every step. What cannot be told is the state of the step, and no error."""
    return _Run(chain, options or Options(), Listener()).foresee()


class _Run:
    def __init__(self, chain: Chain, options: Options, listener: Listener) -> None:
        self.chain = chain
        self.options = options
        self.listener = listener
        self.lock = lock_path(chain.file)
        lock, self.records = read_records(self.lock)
        settings = options.settings
        self.inputs = Inputs(chain, lock, settings.offline, options.locked)
        self.merges = Merges(chain, settings, lock)
        self.survey = Survey(chain, self.inputs, self.records, self.merges.is_up_to_date)
        self.maker = Maker(
            chain,
            self.inputs,
            self.merges,
            options.allow_commands,
            listener.line,
            listener.progress,
        )
        self.contents: dict[str, str | None] = {}
        self.results: dict[str, StepResult] = {}
        self.failed: set[str] = set()
        self.error: MergeEngineError | None = None
        self.chosen, self.forced = self._choice()

    def _choice(self) -> tuple[set[str], set[str]]:
        """The steps that are looked at, and those that are made whatever is there."""
        chain, options = self.chain, self.options
        ids = [step.id for step in chain.steps]
        for name in (*options.steps, *([options.start] if options.start else [])):
            if name not in ids:
                raise PlanError(f"{chain.file}: there is no step `{name}`: {', '.join(ids)}")
        chosen = set(ids)
        if options.steps:
            chosen &= chain.needed_for(*options.steps)
        if options.start:
            chosen &= chain.following(options.start)
        forced: set[str] = set()
        if options.force:
            forced = chosen & set(options.steps) if options.steps else set(chosen)
        return chosen, forced - self.survey.fused

    # --- looking ---------------------------------------------------------------------------

    def foresee(self) -> list[Foreseen]:
        contents: dict[str, str | None] = {}
        found = []
        for step in self.chain.steps:
            state, reason, content = self._foreseen(step, contents)
            contents[step.id] = content
            there = state in ("up to date", "not asked for")
            measured = measured_by(step) if there else {}
            size = _size(step.output) if state != "fused" else 0
            found.append(Foreseen(step, state, reason, size, measured))
        return found

    def _foreseen(
        self, step: Step, contents: Mapping[str, str | None]
    ) -> tuple[str, str, str | None]:
        if step.id not in self.chosen:
            return "not asked for", "", self._as_it_is(step)
        try:
            look = self.survey.look(step, contents)
        except MergeEngineError as error:
            return "cannot be made", str(error), None
        if step.id in self.forced and look.state != "after others":
            return "to do", "--force makes it anew", None
        return look.state, look.reason, look.content

    def _as_it_is(self, step: Step) -> str | None:
        """What a step that was not chosen holds, whatever it should hold."""
        manifest, record = self.survey.manifest(step), self.records.get(step.id)
        if isinstance(step.work, External) and step.output.exists():
            return content_of_model(open_checkpoint(step.output.absolute()))
        if manifest is not None:
            return content_of(manifest)
        if step.id in self.survey.fused:
            before = {used: self._as_it_is(self.chain[used]) for used in step.uses}
            return self.survey.look(step, before).content
        return record.content if record is not None and not step.keep else None

    # --- doing -----------------------------------------------------------------------------

    def run(self) -> ChainResult:
        self._check_commands()
        while not self._once():
            pass
        steps = tuple(self.results[step.id] for step in self.chain.steps if step.id in self.results)
        return ChainResult(steps, self.error)

    def _check_commands(self) -> None:
        """Programs that nobody has allowed are refused before anything is made."""
        if self.options.allow_commands:
            return
        programs = []
        for each in self.foresee():
            if not isinstance(each.step.work, Command | Evaluation):
                continue
            if each.state in ("to do", "after others"):
                programs.append(each.step)
        self.maker.check_allowed(programs)

    def _once(self) -> bool:
        """Every step in its turn. False where an intermediate that had to be made again is not
        what it was: what was looked at before must then be looked at again."""
        self.contents = {}
        for step in self.chain.steps:
            before = dict(self.contents)
            try:
                self._step(step)
            except MergeEngineError as error:
                outcome: Outcome = "awaited" if isinstance(error, AwaitedError) else "failed"
                self._failed(step, outcome, error)
                if not self.options.keep_going:
                    return True
            self._save()
            self._tidy()
            if any(self.contents[name] != content for name, content in before.items()):
                return False
        return True

    def _failed(self, step: Step, outcome: Outcome, error: MergeEngineError) -> None:
        self.error = self.error or error
        self.failed.add(step.id)
        self.contents[step.id] = None
        self._end(StepResult(step, outcome, str(error)))

    def _step(self, step: Step) -> None:
        if step.id not in self.chosen:
            self.contents[step.id] = self._as_it_is(step)
            return
        if step.id in self.failed:
            self.contents[step.id] = None
            return
        lacking = [used for used in step.uses if used in self.failed]
        if lacking:
            self.failed.add(step.id)
            self.contents[step.id] = None
            self._end(StepResult(step, "skipped", f"it needs {', '.join(lacking)}"))
            return
        look = self.survey.look(step, self.contents)
        forced = step.id in self.forced
        if look.state == "after others":
            raise OutputError(
                f"{step.position}: step `{step.id}`: {look.reason}, and that is not there: run "
                "the chain without --from, or with an earlier step"
            )
        if look.state == "awaited":
            look = self._accepted(step, look, forced)
        if look.state == "refused" and not forced:
            raise OutputError(
                f"{step.position}: step `{step.id}`: {look.reason}. --force with "
                f"--step {step.id} replaces it; `output: {{path: ...}}` puts the step elsewhere"
            )
        if look.state in ("to do", "refused") or (forced and not isinstance(step.work, External)):
            reason = "--force makes it anew" if forced else look.reason
            self._make(step, look, reason, forced=forced)
            return
        self.contents[step.id] = look.content
        if look.state == "up to date" and look.parts is not None and look.content is not None:
            self._remember(step, look.parts, look.content)
        outcomes: dict[str, Outcome] = {"fused": "fused", "removed": "removed"}
        outcome = outcomes.get(look.state, "reused")
        if step.id not in self.results:
            there = outcome == "reused"
            if there and not isinstance(step.work, External):
                clear_leftovers(step.output)
            manifest = self.survey.manifest(step) if there else None
            for warning in manifest.warnings if manifest is not None else ():
                self.listener.warn(f"{step.id}: {warning}")
            size, measured = (_size(step.output), measured_by(step)) if there else (0, {})
            self._end(StepResult(step, outcome, look.reason, 0.0, size, measured))

    def _accepted(self, step: Step, look: Look, forced: bool) -> Look:
        """What is done elsewhere, where it is there and is taken as it is."""
        assert isinstance(step.work, External)
        if forced and step.output.exists():
            content = content_of_model(open_checkpoint(step.output.absolute()))
            return Look("up to date", "done elsewhere, and taken as it is", look.parts, content)
        taken = "".join(f"\n    {used}: {self.chain[used].output}" for used in step.uses)
        again = (
            f"; --force with --step {step.id} takes what is there" if step.output.exists() else ""
        )
        raise AwaitedError(
            f"{step.position}: step `{step.id}` is done elsewhere: {step.work.about}\n"
            f"  {look.reason}\n"
            f"  expected: a model folder with safetensors, in {step.output}"
            + (f"\n  it takes:{taken}" if taken else "")
            + f"\n  then run the chain again{again}"
        )

    def _make(self, step: Step, look: Look, reason: str, *, forced: bool) -> None:
        assert look.parts is not None
        if not isinstance(step.work, Merge):
            self.maker.check_allowed([step])
        self._provide(step)
        parts = self.survey.parts(step, self.contents)
        self.listener.begin(step, reason)
        began = time.monotonic()
        there = step.output.exists() and any(step.output.iterdir())
        if there and not forced:
            self._check_own(step)
        try:
            made = self.maker.make(step, parts, replace=forced or there, anew=forced)
        except NotFusableError:
            self._write_fused(step)
            began = time.monotonic()
            made = self.maker.make(step, parts, replace=forced or there, anew=forced)
        for warning in made.warnings:
            self.listener.warn(f"{step.id}: {warning}")
        self.forced.discard(step.id)
        content = content_of(made.manifest)
        self._remember(step, parts, content)
        self.contents[step.id] = content
        result = StepResult(
            step,
            "made" if made.made else "reused",
            reason,
            time.monotonic() - began,
            _size(step.output),
            made.measured,
        )
        self._end(result)

    def _check_own(self, step: Step) -> None:
        """OutputError unless every byte of what would be replaced is as the chain left it."""
        differences = verify(step.output)
        if differences:
            raise OutputError(
                f"{step.position}: step `{step.id}`: {step.output} was changed by hand: "
                f"{differences[0]}. --force with --step {step.id} replaces it"
            )

    def _provide(self, step: Step) -> None:
        """Make again what the step takes and was removed, or is a part of nothing yet."""
        for used in step.uses:
            taken = self.chain[used]
            if used in self.survey.fused and used not in self.merges.written:
                self._provide(taken)
            elif not taken.output.exists():
                before = {each: self.contents.get(each) for each in taken.uses}
                look = self.survey.look(taken, before)
                self._make(taken, look, f"{step.id} needs it", forced=False)

    def _write_fused(self, step: Step) -> None:
        """Merges that compute in another dtype than the one that takes them are written."""
        for used in step.uses:
            if used in self.survey.fused and used not in self.merges.written:
                taken, content = self.chain[used], self.contents[used]
                self._provide(taken)
                self.merges.written.add(used)
                parts = self.survey.parts(taken, self.contents)
                look = Look("to do", "", parts)
                self._make(taken, look, f"{step.id} computes in another dtype", forced=False)
                self.contents[used] = content

    def _remember(self, step: Step, parts: dict[str, Any], content: str) -> None:
        manifest = self.survey.manifest(step)
        own = manifest is not None and not isinstance(step.work, External)
        identity = manifest.identity if own and manifest is not None else ""
        self.records[step.id] = Record(parts, identity, content)

    def _save(self) -> None:
        ids = {step.id for step in self.chain.steps}
        models = {**self.inputs.lock.models, **self.inputs.pins}
        known = {
            reference.text for step in self.chain.steps for _, reference, _ in self.inputs.of(step)
        }
        write_records(
            self.lock,
            {name: pin for name, pin in models.items() if name in known},
            {name: record for name, record in self.records.items() if name in ids},
            self.chain.substituted.document(),
        )

    # --- tidying ---------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Remove intermediates of ours that no step needs any more."""
        for step in self.chain.steps:
            if step.keep or step.id in self.failed or not step.output.exists():
                continue
            users = self.chain.users(step.id)
            if not users or not all(self._is_done(user) for user in users):
                continue
            manifest, record = self.survey.manifest(step), self.records.get(step.id)
            own = manifest is not None and record and manifest.identity == record.identity
            if not own or manifest is None or quick_changes(step.output, manifest):
                continue
            with Workspace(step.output) as workspace:
                workspace.remove_output()
            result = self.results.get(step.id)
            if result is not None:
                gone = StepResult(
                    step, result.outcome, result.reason, result.seconds, result.bytes, removed=True
                )
                self.results[step.id] = gone

    def _is_done(self, step: Step) -> bool:
        if step.id in self.survey.fused:
            return all(self._is_done(user) for user in self.chain.users(step.id))
        result = self.results.get(step.id)
        return result is not None and result.outcome in ("made", "reused", "removed")

    def _end(self, result: StepResult) -> None:
        self.results[result.step.id] = result
        self.listener.end(result)


def _size(path: Path) -> int:
    """Bytes of the files of an output."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
