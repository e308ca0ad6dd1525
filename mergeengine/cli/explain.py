"""``mergeengine explain``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergeengine.cli import options
from mergeengine.cli.console import emit, emit_json, say

if TYPE_CHECKING:
    from mergeengine.analysis.explain import Explanation, Term
    from mergeengine.plan import Plan
    from mergeengine.workflow.models import Models
    from mergeengine.workflow.settings import Settings


@click.command("explain")
@options.plan_argument
@click.argument("glob", required=False)
@options.overrides_option
@options.offline_option
@click.option("--step", metavar="ID", help="Of a chain: the merge to explain.")
@click.option("--table", is_flag=True, help="Layers by kinds of module: the scale of each.")
@click.option("--png", type=options.PATH, metavar="FILE", help="That table as a heat map.")
@options.format_option
def command(
    plan_file: Path,
    glob: str | None,
    overrides: tuple[str, ...],
    offline: bool,
    step: str | None,
    table: bool,
    png: Path | None,
    style: str,
) -> None:
    """Show for each output tensor its formula, and the plan line that decided each number.

    Tensors that are made alike are shown together. With GLOB (e.g. "*.mlp.*", in quotes) each
    tensor whose name fits is shown by itself. Only the headers of the models are read.
    """
    from mergeengine.analysis.explain import describe, explain, group
    from mergeengine.workflow.prepare import bind_models, resolve
    from mergeengine.workflow.reading import is_chain, load_plan
    from mergeengine.workflow.settings import Settings

    settings = Settings(offline=offline)
    with ExitStack() as stack:
        if is_chain(plan_file):
            plan, models = stack.enter_context(_merge_of(plan_file, overrides, step, settings))
        elif step is not None:
            raise click.ClickException("--step is an option of chains; this is a plan")
        else:
            plan = load_plan(plan_file, overrides)
            models, _ = resolve(plan, settings)
        binding = bind_models(plan, models).binding
    explained = explain(plan, binding, glob)
    if not explained:
        raise click.ClickException(
            f"no tensor of the output fits {glob!r}; the first is called "
            f"{binding.tensors[0].output.name}"
        )
    if table or png is not None:
        _tables(plan.name, explained, png, style)
        return
    if style == "json":
        emit_json([asdict(each) for each in explained])
        return
    if glob is None:
        shown = [(each.labels, each.example) for each in group(explained)]
    else:
        shown = [(((each.name, describe(each)),), each) for each in explained]
    emit("\n\n".join("\n".join(_paragraph(labels, each)) for labels, each in shown))


@contextmanager
def _merge_of(
    file: Path, overrides: tuple[str, ...], step: str | None, settings: "Settings"
) -> Iterator[tuple["Plan", "Models"]]:
    """A merge of a chain, and its models: those that it is fused with as they would be."""
    from mergeengine.chain.chain import Merge
    from mergeengine.cli.chain_run import step_of
    from mergeengine.output.lock import PlanLock, lock_path, read_lock
    from mergeengine.workflow.chain.merges import Merges
    from mergeengine.workflow.reading import load_chain

    chain = load_chain(file, overrides)
    merges = [each for each in chain.steps if isinstance(each.work, Merge)]
    if step is None and len(merges) != 1:
        listed = ", ".join(each.id for each in merges) or "there is none"
        raise click.ClickException(f"--step says which merge of the chain to explain: {listed}")
    chosen = merges[0] if step is None else step_of(chain, step)
    if not isinstance(chosen.work, Merge):
        raise click.ClickException(f"`{chosen.id}` is no merge: only merges have formulas")
    lock = read_lock(lock_path(chain.file)) or PlanLock()
    with Merges(chain, settings, lock).models(chosen) as models:
        yield chosen.work.plan, models


def _tables(name: str, explained: tuple["Explanation", ...], png: Path | None, style: str) -> None:
    from mergeengine.analysis.scales import outside_text, rows, scales

    tables = scales(explained)
    if png is not None:
        from mergeengine.analysis.heat_map import draw

        draw(tables, name, png)
        say(f"wrote {png}")
        return
    if style == "json":
        emit_json(
            [
                {
                    "source": each.source,
                    "layers": [
                        {"layer": layer, "kind": kind, "least": least, "greatest": greatest}
                        for (layer, kind), (least, greatest) in each.values.items()
                    ],
                    "outside": each.outside,
                }
                for each in tables
            ]
        )
        return
    if not tables:
        emit("no tensor gets a delta")
    for number, each in enumerate(tables):
        lines = rows(each)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if len(tables) > 1:
            emit(f"{chr(10) if number else ''}{each.source}")
        for line in lines:
            cells = [f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)]
            emit("  ".join(cells))
        if each.layers and each.outside:
            emit(f"outside of layers: {outside_text(each)}")


def _paragraph(labels: tuple[tuple[str, str], ...], each: "Explanation") -> Iterator[str]:
    width = max(len(name) for name, _ in labels)
    for name, described in labels:
        yield f"{name:<{width}}  {described}"
    yield f"  = {each.formula}"
    for reason in each.reasons:
        yield f"    {reason}"
    rows = [row for term in each.terms for row in _rows(term, len(each.terms) > 1)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"    {'  '.join(cells)}".rstrip()


def _rows(term: "Term", named: bool) -> Iterator[tuple[str, str, str]]:
    """Each number that makes a coefficient, what the plan says there, and where."""
    name = f"{term.source}: " if named else ""
    for number, factor in enumerate(term.factors):
        before = " " * len(name) + "× " if number else name
        yield f"{before}{factor.value:.6g}", factor.text, factor.at or ""
