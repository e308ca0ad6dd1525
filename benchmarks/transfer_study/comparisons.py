"""The papers' comparisons, as tables made of the measures of one or more seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.transfer_study import papers
from benchmarks.transfer_study.recipe import BASES, TRANSLATED
from benchmarks.transfer_study.tables import Measures, Table, finding, spread

PAIRS = tuple((delta, base) for delta in BASES for base in BASES if delta != base)
Curve = list[dict[str, float]]


def tables(seeds: Sequence[Measures]) -> list[Table]:
    """All of them, in the papers' order."""
    made = (matrix, recycling, language, curves, distant_starts, iterative, lines)
    return [make(seeds) for make in made] + [scaling(seeds), grid(seeds), geometry(seeds)]


def shown(name: str) -> str:
    """``m3`` as the papers write it."""
    return name.upper()


def transferred(measures: Measures, delta: str, base: str) -> float:
    """The accuracy of base + delta."""
    return float(measures["models"]["matrix"][delta][base]["accuracy"])


def _distance(delta: str, base: str) -> int:
    return abs(BASES.index(delta) - BASES.index(base))


def _mean_over_pairs(measures: Measures, near: bool, of: Any) -> float:
    chosen = [pair for pair in PAIRS if (_distance(*pair) == 1) == near]
    return statistics.fmean(of(measures, *pair) for pair in chosen)


def matrix(seeds: Sequence[Measures]) -> Table:
    """Every delta on every base (Lin et al., Table 3)."""

    def base_alone(measures: Measures, base: str) -> float:
        return float(measures["models"]["bases"][base]["english"]["accuracy"])

    def notes(measures: Measures, base: str) -> float:
        return float(measures["models"]["bases"][base]["notes"]["accuracy"])

    def received(measures: Measures, base: str) -> float:
        return statistics.fmean(transferred(measures, d, base) for d in BASES if d != base)

    rows = [
        ["notes, base alone", *(spread(seeds, partial(notes, base=b)) for b in BASES)],
        ["base alone", *(spread(seeds, partial(base_alone, base=b)) for b in BASES)],
    ]
    rows += [
        [
            f"+ Δ{delta[1:]}",
            *(spread(seeds, partial(transferred, delta=delta, base=base)) for base in BASES),
        ]
        for delta in BASES
    ]
    rows.append(["mean of others' Δ", *(spread(seeds, partial(received, base=b)) for b in BASES)])
    return Table(
        "matrix",
        "1. Every delta on every base",
        "Exact answers to held-out questions of Mᵢ + Δⱼ, where Δⱼ = FT(Mⱼ) − Mⱼ; on the diagonal "
        "FT(Mᵢ) itself. The first row is what the base has learned of its own pretraining data.",
        ["", *map(shown, BASES)],
        rows,
        [papers.MATRIX],
        [
            finding(
                seeds,
                "Later bases (M4, M5) use others' deltas better than early ones (M1, M2)",
                lambda m: (
                    received(m, "m4") + received(m, "m5") > received(m, "m1") + received(m, "m2")
                ),
            ),
            finding(
                seeds,
                "Neighbours transfer better than pairs further apart",
                lambda m: (
                    _mean_over_pairs(m, True, transferred) > _mean_over_pairs(m, False, transferred)
                ),
            ),
        ],
        ["matrix.png"],
    )


def recycling(seeds: Sequence[Measures]) -> Table:
    """A delta of the version before, and one of the version after (Table 1)."""

    def rows_of(base: str, delta: str, figures: dict[str, str]) -> Iterator[list[Any]]:
        alone = spread(seeds, lambda m: m["models"]["bases"][base]["english"]["accuracy"])
        yield [shown(base), alone, figures["base"]]
        merged = spread(seeds, partial(transferred, delta=delta, base=base))
        yield [f"{shown(base)} + Δ{delta[1:]}", merged, figures["recycled"]]
        tuned = spread(seeds, partial(transferred, delta=base, base=base))
        yield [f"FT({shown(base)})", tuned, figures["tuned"]]

    def most(measures: Measures, base: str, delta: str) -> bool:
        return transferred(measures, delta, base) >= 0.5 * transferred(measures, base, base)

    return Table(
        "recycling",
        "2a. Recycling and backporting",
        "Exact answers. The delta of the version before is recycled, of the one after backported.",
        ["", "here", "papers (%)"],
        [*rows_of("m5", "m4", papers.RECYCLING), *rows_of("m4", "m5", papers.BACKPORTING)],
        [papers.RECYCLING_ABOUT],
        [
            finding(
                seeds,
                "The recycled delta gives at least half of what fine-tuning gives",
                partial(most, base="m5", delta="m4"),
            ),
            finding(
                seeds,
                "So does the backported one",
                partial(most, base="m4", delta="m5"),
            ),
        ],
    )


def language(seeds: Sequence[Measures]) -> Table:
    """A second fine-tuning, in another language, carried to other fine-tunes (Table 2)."""

    def before(measures: Measures, base: str, kind: str) -> float:
        return float(measures["models"]["tuned"][base][kind]["accuracy"])

    def after(measures: Measures, delta: str, base: str, kind: str) -> float:
        return float(measures["models"]["latin"][delta][base][kind]["accuracy"])

    rows = []
    for base in TRANSLATED:
        kinds = ("latin", "english")
        rows.append(
            [
                f"FT({shown(base)})",
                *(spread(seeds, partial(before, base=base, kind=kind)) for kind in kinds),
            ]
        )
        for delta in TRANSLATED:
            own = delta == base
            name = "+ Latin, fine-tuned for it" if own else f"+ Latin of FT({shown(delta)})"
            picks = [partial(after, delta=delta, base=base, kind=kind) for kind in kinds]
            rows.append([name, *(spread(seeds, pick) for pick in picks)])
    return Table(
        "language",
        "2b. A language on top of a fine-tune",
        "FT(Mᵢ) is fine-tuned further on the same tasks asked in Latin; this second step alone, "
        "Latin(FT(Mᵢ)) − FT(Mᵢ), is added to the other fine-tunes. Exact answers.",
        ["", "Latin", "English"],
        rows,
        [papers.LANGUAGE],
        [
            finding(
                seeds,
                "The step of FT(M4) raises FT(M5) in that language by 4.7 points or more",
                lambda m: after(m, "m4", "m5", "latin") >= before(m, "m5", "latin") + 0.047,
            )
        ],
    )


def at(curve: Curve, step: int) -> float:
    """The accuracy at a step of a fine-tuning."""
    return next(point["accuracy"] for point in curve if point["step"] == step)


def steps_to(curve: Curve, accuracy: float) -> float:
    """The measured step from which on the accuracy is no less; infinity where there is none."""
    found = math.inf
    for point in reversed(curve):
        if point["accuracy"] < accuracy:
            break
        found = point["step"]
    return found


def last(curve: Curve) -> float:
    """The accuracy at the end."""
    return curve[-1]["accuracy"]


def _curve(measures: Measures, start: str, base: str) -> Curve:
    found: Curve = measures["curves"][start][base]
    return found


def _curve_rows(
    seeds: Sequence[Measures], named: dict[str, tuple[str, str]], steps: Sequence[int]
) -> list[list[Any]]:
    def accuracy(measures: Measures, start: str, base: str, step: int) -> float:
        return at(_curve(measures, start, base), step)

    return [
        [name, *(spread(seeds, partial(accuracy, start=s, base=b, step=step)) for step in steps)]
        for name, (s, b) in named.items()
    ]


def _steps(seeds: Sequence[Measures]) -> list[int]:
    return [int(point["step"]) for point in _curve(seeds[0], "base", BASES[0])]


def curves(seeds: Sequence[Measures]) -> Table:
    """Transferring-then-finetuning from the neighbour's delta (Table 4, Figure 2)."""
    named: dict[str, tuple[str, str]] = {}
    for old, new in pairwise(BASES):
        named[f"from {shown(new)}"] = ("base", new)
        named[f"from {shown(new)} + Δ{old[1:]}"] = ("direct", new)

    def sooner(measures: Measures, base: str) -> bool:
        plain, merged = (_curve(measures, start, base) for start in ("base", "direct"))
        goal = 0.9 * last(plain)
        return steps_to(merged, goal) < steps_to(plain, goal)

    def ahead(measures: Measures, base: str, step: int) -> bool:
        return at(_curve(measures, "direct", base), step) > at(_curve(measures, "base", base), step)

    steps = _steps(seeds)
    halfway = steps[len(steps) // 2]
    return Table(
        "curves",
        "3a. Transferring, then fine-tuning",
        "Exact answers after so many steps of the same fine-tuning, from the base, and from it "
        "with the delta of the version before.",
        ["steps", *map(str, steps)],
        _curve_rows(seeds, named, steps),
        [papers.CURVES],
        [
            finding(
                seeds,
                f"At step {halfway} {shown(new)} + Δ{old[1:]} is ahead of {shown(new)}",
                partial(ahead, base=new, step=halfway),
            )
            for old, new in pairwise(BASES)
        ]
        + [
            finding(
                seeds,
                "M5 + Δ4 has nine tenths of FT(M5), and keeps them, after fewer steps than M5",
                partial(sooner, base="m5"),
            ),
            finding(
                seeds,
                "At M5 the end is as good as without the delta (within 2 points), or better",
                lambda m: last(_curve(m, "direct", "m5")) >= last(_curve(m, "base", "m5")) - 0.02,
            ),
        ],
        ["curves.png"],
    )


def distant_starts(seeds: Sequence[Measures]) -> Table:
    """The last base fine-tuned from every other delta."""
    named = {"from M5": ("base", "m5")}
    named |= {f"from M5 + Δ{old[1:]}": ("on m5", old) for old in BASES[:-1]}
    steps = _steps(seeds)
    halfway = steps[len(steps) // 2]
    return Table(
        "distant starts",
        "3b. M5, fine-tuned from deltas of all ages",
        "As above; exact answers.",
        ["steps", *map(str, steps)],
        _curve_rows(seeds, named, steps),
        [papers.CURVES],
        [
            finding(
                seeds,
                f"At step {halfway} even M5 + Δ1 is ahead of M5",
                lambda m: (
                    at(_curve(m, "on m5", "m1"), halfway) > at(_curve(m, "base", "m5"), halfway)
                ),
            )
        ],
    )


def iterative(seeds: Sequence[Measures]) -> Table:
    """Algorithm 1 against the delta of a plain fine-tuning (Table 6)."""

    def first(measures: Measures, start: str, base: str) -> float:
        return at(_curve(measures, start, base), 0)

    def end(measures: Measures, start: str, base: str) -> float:
        return last(_curve(measures, start, base))

    rows = []
    for base in BASES[1:]:
        cells = [spread(seeds, partial(end, start="base", base=base))]
        for pick in (first, end):
            cells += [
                spread(seeds, partial(pick, start=start, base=base))
                for start in ("direct", "iterative")
            ]
        rows.append([shown(base), *cells])
    return Table(
        "iterative",
        "4. Iterative against direct recycling-then-finetuning",
        "Exact answers. Δdir is FT(Mᵢ₋₁) − Mᵢ₋₁; Δiter is what Algorithm 1 has at Mᵢ₋₁, with all "
        "fine-tunings before it. `algorithm-1.yaml` is that algorithm as one chain.",
        ["", "FT(Mᵢ)", "Mᵢ + Δdir", "Mᵢ + Δiter", "FT(Mᵢ + Δdir)", "FT(Mᵢ + Δiter)"],
        rows,
        [papers.ITERATIVE],
        [
            finding(
                seeds,
                "Mᵢ + Δiter is better than Mᵢ + Δdir, on average over M3 to M5",
                lambda m: (
                    sum(first(m, "iterative", b) for b in BASES[2:])
                    > sum(first(m, "direct", b) for b in BASES[2:])
                ),
            ),
            finding(
                seeds,
                "So it is after fine-tuning",
                lambda m: (
                    sum(end(m, "iterative", b) for b in BASES[2:])
                    > sum(end(m, "direct", b) for b in BASES[2:])
                ),
            ),
        ],
        ["iterative.png"],
    )


def barrier(line: Curve) -> float:
    """How far the loss rises above the straight line between the losses at the ends (Frankle et al.
    2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis"); 0 where it does not."""
    begin, end = line[0]["loss"], line[-1]["loss"]
    return max(p["loss"] - ((1 - p["at"]) * begin + p["at"] * end) for p in line)


def to_own(measures: Measures, delta: str, base: str) -> Curve:
    """The line from base + delta to the base's own fine-tune."""
    found: Curve = measures["lines"][delta][base]
    return found


def between(measures: Measures, delta: str, base: str) -> Curve:
    """The line between two bases, from the older one on."""
    old, new = sorted((delta, base))
    found: Curve = measures["between"][old][new]
    return found


def share(measures: Measures, delta: str, base: str) -> float:
    """What part of the own fine-tune's accuracy a transferred delta gives."""
    return transferred(measures, delta, base) / max(transferred(measures, base, base), 1e-9)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with the mean rank for equal values; 0 where all are equal."""
    a, b = _ranks(first), _ranks(second)
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return statistics.correlation(a, b)


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def lines(seeds: Sequence[Measures]) -> Table:
    """The loss between Mᵢ + Δⱼ and FT(Mᵢ), and between Mⱼ and Mᵢ."""

    def point(measures: Measures, delta: str, base: str, place: int) -> float:
        return to_own(measures, delta, base)[place]["loss"]

    def tuned_barrier(measures: Measures, delta: str, base: str) -> float:
        return barrier(to_own(measures, delta, base))

    def bases_barrier(measures: Measures, delta: str, base: str) -> float:
        return barrier(between(measures, delta, base))

    def correlation(measures: Measures, of: Callable[[Measures, str, str], float]) -> float:
        return rank_correlation(
            [of(measures, *pair) for pair in PAIRS], [share(measures, *pair) for pair in PAIRS]
        )

    rows: list[list[Any]] = []
    for delta, base in sorted(PAIRS, key=lambda pair: (_distance(*pair), pair)):
        picks = (
            partial(point, place=0),
            partial(point, place=-1),
            tuned_barrier,
            bases_barrier,
            share,
        )
        cells = [spread(seeds, partial(pick, delta=delta, base=base)) for pick in picks]
        rows.append([f"Δ{delta[1:]} on {shown(base)}", *cells])
    barriers = (tuned_barrier, bases_barrier)
    together = [spread(seeds, partial(correlation, of=of)) for of in barriers]
    rows.append(["rank correlation with the share", "", "", *together, ""])
    return Table(
        "lines",
        "5. Linear connectivity",
        "Losses in nats a token. Start and end: held-out questions, of Mᵢ + Δⱼ and of FT(Mᵢ). "
        "Barrier: the most by which the loss on the straight line between two models rises above "
        "the straight line between their losses; first between Mᵢ + Δⱼ and FT(Mᵢ), then between "
        "Mⱼ and Mᵢ, asked held-out notes. The share is the accuracy of Mᵢ + Δⱼ over FT(Mᵢ)'s.",
        ["", "start", "end", "barrier", "barrier between bases", "share"],
        rows,
        [papers.LINES],
        [
            finding(
                seeds,
                f"The lower the barrier {where}, the better the transfer "
                "(rank correlation below −0.5)",
                lambda m, of=of: correlation(m, of) < -0.5,
            )
            for where, of in (
                ("to the own fine-tune", tuned_barrier),
                ("between the bases", bases_barrier),
            )
        ],
        ["barriers.png", "lines.png"],
    )


def _scaled(measures: Measures) -> list[tuple[str, str]]:
    return [(d, b) for d, bases in measures["scalings"].items() for b in bases]


def scaling(seeds: Sequence[Measures]) -> Table:
    """How much of the delta (Cao et al.)."""
    pairs = _scaled(seeds[0])
    points = [point["at"] for point in seeds[0]["scalings"][pairs[0][0]][pairs[0][1]]]

    def accuracy(measures: Measures, delta: str, base: str, index: int) -> float:
        return float(measures["scalings"][delta][base][index]["accuracy"])

    def best(measures: Measures, delta: str, base: str) -> float:
        return max(range(len(points)), key=lambda i: accuracy(measures, delta, base, i))

    def is_near_one(measures: Measures) -> bool:
        return all(0.75 <= points[int(best(measures, *pair))] <= 1.25 for pair in pairs)

    return Table(
        "scaling",
        "6a. How much of the delta",
        "Exact answers of Mᵢ + α · Δⱼ.",
        ["α", *(f"{point:g}" for point in points)],
        [
            [
                f"{shown(base)} + α · Δ{delta[1:]}",
                *(
                    spread(seeds, partial(accuracy, delta=delta, base=base, index=index))
                    for index in range(len(points))
                ),
            ]
            for delta, base in pairs
        ],
        [papers.SCALING],
        [finding(seeds, "The best α is between 0.75 and 1.25 for every pair", is_near_one)],
        ["scaling.png"],
    )


def grid(seeds: Sequence[Measures]) -> Table:
    """Two deltas at once (Cao et al.)."""

    def accuracy(measures: Measures, a: float, b: float, kind: str) -> float:
        chosen = next(
            point
            for point in measures["grid"]
            if (point["english weight"], point["latin weight"]) == (a, b)
        )
        return float(chosen[kind]["accuracy"])

    weights = sorted({point["english weight"] for point in seeds[0]["grid"]})
    rows = [
        [
            f"a = {a:g}, {kind.capitalize()}",
            *(spread(seeds, partial(accuracy, a=a, b=b, kind=kind)) for b in weights),
        ]
        for a in weights
        for kind in ("english", "latin")
    ]
    return Table(
        "grid",
        "6b. Two deltas at once",
        "Exact answers of M5 + a · (FT(M4) − M4) + b · (Latin(FT(M4)) − FT(M4)), by language.",
        ["", *(f"b = {weight:g}" for weight in weights)],
        rows,
        [papers.SCALING],
        [
            finding(
                seeds,
                "The second delta adds its language (Latin, b = 1 against b = 0 at a = 1)",
                lambda m: accuracy(m, 1.0, 1.0, "latin") > accuracy(m, 1.0, 0.0, "latin"),
            )
        ],
    )


def geometry(seeds: Sequence[Measures]) -> Table:
    """Norms and cosines of the deltas."""

    def of(measures: Measures, what: str, *names: str) -> float:
        found = measures["geometry"][what]
        for name in names:
            found = found[name]
        return float(found)

    def cosine(measures: Measures, delta: str, base: str) -> float:
        return of(measures, "cosine", delta, base)

    rows: list[list[Any]] = [
        ["‖Δᵢ‖ / ‖Mᵢ‖", *(spread(seeds, lambda m, b=b: of(m, "delta", b)) for b in BASES)]
    ]
    for what, name in (("distance", "‖M{} − Mᵢ‖ / ‖Mᵢ‖"), ("cosine", "cos(Δ{}, Δᵢ)")):
        rows += [
            [
                name.format(a[1:]),
                *(spread(seeds, lambda m, w=what, a=a, b=b: of(m, w, a, b)) for b in BASES),
            ]
            for a in BASES
        ]
    return Table(
        "geometry",
        "6c. Norms and cosines",
        "Of all weights as one vector.",
        ["", *(f"i = {base[1:]}" for base in BASES)],
        rows,
        [papers.GEOMETRY],
        [
            finding(
                seeds,
                "Deltas of neighbours are more alike than those further apart",
                lambda m: _mean_over_pairs(m, True, cosine) > _mean_over_pairs(m, False, cosine),
            ),
            finding(
                seeds,
                "The more alike two deltas, the better the transfer (rank correlation above 0.5)",
                lambda m: (
                    rank_correlation(
                        [cosine(m, *pair) for pair in PAIRS], [share(m, *pair) for pair in PAIRS]
                    )
                    > 0.5
                ),
            ),
        ],
    )
