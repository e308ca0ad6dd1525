"""The table of `benchmarks/README.md`, made of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare_mergekit.cases import DTYPES, RECIPES
from benchmarks.compare_mergekit.verdicts import RANDOM, Verdict

BEGIN = "<!-- {}: begin (written by `python -m benchmarks.compare_mergekit{} --publish`) -->"
END = "<!-- {}: end -->"

_HEAD = (
    "| method | dtype | configurations | same bits, % | within one unit, % | furthest, units "
    "| from float64: mergekit's, ours | at ties |"
)


def table(verdicts: Sequence[Verdict]) -> str:
    """A row for each method and dtype, the worst of its configurations."""
    rows = [_HEAD, "|---|---|---|---|---|---|---|---|"]
    for method in RECIPES:
        for dtype in DTYPES:
            own = [each for each in verdicts if (each.method, each.dtype) == (method, dtype)]
            if own:
                rows.append(_row(method, dtype, own))
    return "\n".join(rows)


def _row(method: str, dtype: str, own: Sequence[Verdict]) -> str:
    done = [each for each in own if not each.problem]
    count = f"{len(own)}" if len(done) == len(own) else f"{len(done)} of {len(own)}"
    start = f"| `{method}` | {dtype} | {count} |"
    if not done:
        return f"{start} – | – | – | – | – |"
    if method in RANDOM:
        most = max(each.deviations or 0.0 for each in done)
        words = f"random: shares, means and variances within {most:.1f} standard deviations"
        return f"{start} {words} | – | – | – | – |"
    same = min(each.same / each.elements for each in done)
    within = min(each.within / each.elements for each in done)
    furthest = max(each.furthest for each in done)
    off = "–"
    if all(each.theirs_off is not None for each in done):
        theirs = max(each.theirs_off or 0.0 for each in done)
        ours = max(each.ours_off or 0.0 for each in done)
        off = f"{theirs:.3g}, {ours:.3g}"
    ties = max(each.ties / (each.elements + each.ties) for each in done)
    tied = f"{100 * ties:.2f} %" if ties else "–"
    return f"{start} {_percent(same)} | {_percent(within)} | {furthest:.3g} | {off} | {tied} |"


def _percent(share: float) -> str:
    """Only all is 100."""
    return "100" if share == 1 else f"{min(99.99, 100 * share):.2f}"


def broken(verdicts: Sequence[Verdict]) -> list[str]:
    """The configurations that are not what is promised, a line each."""
    lines = []
    for each in verdicts:
        if not each.kept:
            share = f"{each.same} of {each.elements} elements have the same bits"
            random = f"{each.deviations} standard deviations"
            why = each.problem or (random if each.method in RANDOM else share)
            lines.append(f"{each.case}: {why}")
    return lines


def publish(readme: Path, name: str, words: str, text: str) -> None:
    """Put a table between its markers of a Markdown file."""
    begin, end = BEGIN.format(name, words), END.format(name)
    page = readme.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{readme}: expected the lines\n{begin}\n{end}")
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
