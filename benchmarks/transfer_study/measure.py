"""What is measured of one seed's models, kept piece by piece in its folder."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import mergeengine
from benchmarks.tiny.tokenizer import build_tokenizer
from benchmarks.tiny.training import load_model, quiet_torch
from benchmarks.transfer_study.recipe import (
    BASES,
    CHAINS,
    CURVE,
    MEASURES,
    TRANSLATED,
    Measuring,
    read,
)
from benchmarks.transfer_study.scoring import KINDS, questions, score

Measures = dict[str, Any]

# Where the scaling is swept: (the delta's base, the base that gets it).
SCALED = (("m4", "m5"), ("m3", "m5"), ("m5", "m4"), ("m3", "m4"))


def measure(folder: Path, tell: Callable[[str], None]) -> Measures:
    """Measure what the chains in ``folder`` have made; what was measured before is only read.

    Scores are ``{"accuracy": share of exact answers, "loss": nats a token}``. Pieces: ``models``
    (scores by kind of question), ``curves`` (by step of a fine-tuning), ``lines``, ``between``,
    ``scalings`` and ``grid`` (along sweeps of the engine), ``geometry`` (norms and cosines).
    """
    seed = _Seed(folder)
    pieces: dict[str, Callable[[], Any]] = {
        "models": seed.models,
        "curves": seed.curves,
        **{f"line-{d}-{b}": _bind(seed.line, d, b) for d in BASES for b in BASES if d != b},
        **{f"between-{a}-{b}": _bind(seed.between, a, b) for a, b in combinations(BASES, 2)},
        **{f"scaling-{d}-{b}": _bind(seed.scaling, d, b) for d, b in SCALED},
        "grid": seed.grid,
        "geometry": seed.geometry,
    }
    found = {}
    key = _key(folder)
    for name, compute in pieces.items():
        path = folder / "measures" / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("key") != key:
            tell(f"measuring {name}")
            known = {"key": key, "value": compute()}
            _write(path, json.dumps(known))
        found[name] = known["value"]
    return {
        **{name: found[name] for name in ("models", "curves", "grid", "geometry")},
        "lines": _nested(found, "line"),
        "between": _nested(found, "between"),
        "scalings": _nested(found, "scaling"),
    }


def _bind(compute: Callable[[str, str], Any], delta: str, base: str) -> Callable[[], Any]:
    return lambda: compute(delta, base)


def _nested(found: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    """``line-m1-m2`` as ``["m1"]["m2"]``."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        first, *names = name.split("-")
        if first == prefix:
            nested.setdefault(names[0], {})[names[1]] = value
    return nested


def _key(folder: Path) -> str:
    """Names the models, by the locks of the chains that made them, and how they are measured."""
    digest = hashlib.sha256()
    files = [folder / "measuring.json", *(folder / f"{name}.lock" for name in CHAINS)]
    files += [Path(__file__), *(Path(__file__).parent / "chains").glob("*.yaml")]
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def main() -> None:
    """Measure the seed in the working directory, into its `measures.json`."""
    quiet_torch()
    # A sweep makes dozens of models that are looked at once; what it would say is known.
    logging.getLogger("mergeengine").setLevel(logging.ERROR)
    found = measure(Path.cwd(), lambda text: print(text, flush=True))
    _write(Path.cwd() / MEASURES, json.dumps(found))


class _Seed:
    """The models of a seed, and one that takes the weights of each in turn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe, _ = read(folder, Measuring)
        self.model = load_model(folder / "bases" / BASES[0])
        tokenizer = build_tokenizer(chat=True, latin=True)
        self.asked = {kind: questions(tokenizer, kind, self.recipe.questions) for kind in KINDS}

    def score(self, place: Path, kind: str) -> dict[str, float]:
        loaded = self.model.load_state_dict(load_file(place / "model.safetensors"), strict=False)
        assert not loaded.unexpected_keys, loaded
        assert set(loaded.missing_keys) <= {"lm_head.weight"}, loaded  # tied to the embedding
        return asdict(score(self.model, self.asked[kind]))

    def scores(self, place: Path, *kinds: str) -> dict[str, dict[str, float]]:
        return {kind: self.score(place, kind) for kind in kinds}

    def tuned(self, name: str) -> Path:
        return self.folder / "transfer" / f"{name}_plain"

    def on(self, delta: str, base: str) -> Path:
        """The base with the delta of another, or with its own."""
        own = self.tuned(delta)
        return own if delta == base else own.with_name(f"{own.name}_on_{base}")

    def models(self) -> dict[str, Any]:
        def latin(delta: str, base: str) -> Path:
            own = self.folder / "transfer" / f"{delta}_latin"
            return own if delta == base else own.with_name(f"{own.name}_on_{base}_plain")

        both = ("english", "latin")
        return {
            "bases": {b: self.scores(self.folder / "bases" / b, *both, "notes") for b in BASES},
            "tuned": {b: self.scores(self.tuned(b), *both, "notes") for b in BASES},
            "matrix": {d: {b: self.score(self.on(d, b), "english") for b in BASES} for d in BASES},
            "latin": {
                d: {b: self.scores(latin(d, b), *both) for b in TRANSLATED} for d in TRANSLATED
            },
        }

    def curves(self) -> dict[str, dict[str, list[dict[str, float]]]]:
        """What the fine-tunings wrote: by where they start, then by base."""
        transfer, iterative = self.folder / "transfer", self.folder / "algorithm-1"
        curves = {
            "base": {b: transfer / f"{b}_plain" for b in BASES},
            "direct": {b: transfer / f"{b}_direct_ft" for b in BASES[1:]},
            "iterative": {b: iterative / f"{b}_ft" for b in BASES},
            "on m5": {
                **{d: transfer / f"m5_from_{d}_ft" for d in BASES[:-2]},
                BASES[-2]: transfer / "m5_direct_ft",
            },
        }
        return {
            start: {base: json.loads((place / CURVE).read_text()) for base, place in places.items()}
            for start, places in curves.items()
        }

    def line(self, delta: str, base: str) -> list[dict[str, float]]:
        """From base + delta to the base's own fine-tune."""
        models = {"target": self.on(delta, base), "source_ft": self.tuned(base)}
        places = self.sweep("sweep.yaml", models, {"scaling": self.recipe.line})
        return [{"at": at, **self.score(p, "english")} for at, p in places]

    def between(self, old: str, new: str) -> list[dict[str, float]]:
        """From one base to another, asked what both were pretrained on."""
        bases = self.folder / "bases"
        models = {"target": bases / old, "source_ft": bases / new}
        places = self.sweep("sweep.yaml", models, {"scaling": self.recipe.line})
        return [{"at": at, **self.score(p, "notes")} for at, p in places]

    def scaling(self, delta: str, base: str) -> list[dict[str, float]]:
        """base + scaling · delta."""
        models = {
            "target": self.folder / "bases" / base,
            "source_base": self.folder / "bases" / delta,
            "source_ft": self.tuned(delta),
        }
        places = self.sweep("sweep.yaml", models, {"scaling": self.recipe.scalings})
        return [{"at": at, **self.score(p, "english")} for at, p in places]

    def grid(self) -> list[dict[str, Any]]:
        """M5 + english · (FT(M4) − M4) + latin · (m4_latin − FT(M4))."""
        weights = self.recipe.weights
        places = self.sweep("grid.yaml", {}, {"english": weights, "latin": weights})
        return [
            {"english weight": a, "latin weight": b, **self.scores(place, "english", "latin")}
            for (a, b), place in places
        ]

    def sweep(
        self, plan: str, models: dict[str, Path], axes: dict[str, Sequence[float]]
    ) -> list[tuple[Any, Path]]:
        """The models of a sweep, each with its value, or values where there are two axes."""
        if "source_ft" in models:
            models = {"source_base": models["target"], **models}
        shutil.rmtree(self.folder / "sweeps", ignore_errors=True)
        results, _ = mergeengine.sweep(
            self.folder / plan,
            [f"{name}={','.join(map(repr, values))}" for name, values in axes.items()],
            overrides=[f"{key}={place}" for key, place in models.items()],
        )
        return list(zip(_points(axes), (result.output for result in results), strict=True))

    def geometry(self) -> dict[str, Any]:
        """Norms relative to the base's, and cosines of deltas, of all weights as one vector."""
        bases = {b: _flat(self.folder / "bases" / b) for b in BASES}
        deltas = {b: _flat(self.tuned(b)) - bases[b] for b in BASES}

        def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
            return (a @ b / (a.norm() * b.norm())).item()

        return {
            "delta": {b: (deltas[b].norm() / bases[b].norm()).item() for b in BASES},
            "distance": {
                a: {b: ((bases[a] - bases[b]).norm() / bases[b].norm()).item() for b in BASES}
                for a in BASES
            },
            "cosine": {a: {b: cosine(deltas[a], deltas[b]) for b in BASES} for a in BASES},
        }


def _points(axes: dict[str, Sequence[float]]) -> list[Any]:
    if len(axes) == 1:
        return list(*axes.values())
    first, second = axes.values()
    return [(a, b) for a in first for b in second]


def _flat(folder: Path) -> torch.Tensor:
    """All weights as one vector of float64, in the order of their names."""
    weights = load_file(folder / "model.safetensors")
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


if __name__ == "__main__":
    main()
