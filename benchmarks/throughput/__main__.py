"""``python -m benchmarks.throughput [NAMES...]``: measure mergeengine against the floor."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import cast

from benchmarks.throughput.contestants import FLOOR, MAKERS
from benchmarks.throughput.inputs import ROOT, prepare
from benchmarks.throughput.measure import Cache, can_drop_caches
from benchmarks.throughput.report import document, publish, tables
from benchmarks.throughput.rounds import play
from mergeengine.units import parse_size

DESCRIPTION = (
    "Make three models, merge them with each contestant in turn, and compare all with plain "
    "reading and writing of the same bytes, in the same run."
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=DESCRIPTION
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"contestants, of {', '.join(MAKERS)}; default all. The floor always takes part",
    )
    parser.add_argument("--size", default="1.5GB", help="of one model; default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--cache",
        nargs="+",
        choices=("warm", "cold"),
        default=["warm", "cold"],
        help="default both; cold needs root, and empties the machine's page cache before each run",
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".bench", help="where the models are; default .bench"
    )
    parser.add_argument("--json", type=Path, help="default throughput.json in the folder")
    parser.add_argument(
        "--publish",
        type=Path,
        nargs="?",
        const=ROOT / "benchmarks" / "README.md",
        metavar="FILE",
        help="put the tables between the markers of a file; default benchmarks/README.md",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in MAKERS]
    if unknown:
        parser.error(f"no contestant {', '.join(unknown)}; there are {', '.join(MAKERS)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        size = parse_size(arguments.size)
    except ValueError as error:
        parser.error(f"--size: {error}")
    caches = cast("list[Cache]", list(dict.fromkeys(arguments.cache)))
    if "cold" in caches and not can_drop_caches():
        tell("cold is left out: emptying the page cache takes root")
        caches.remove("cold")
    if not caches:
        return 1
    chosen = [name for name in MAKERS if name in (FLOOR, *(arguments.names or MAKERS))]
    inputs = prepare(arguments.folder, size)
    tell(f"{inputs.layout} in {inputs.folder}")
    results = play(chosen, caches, arguments.rounds, inputs, tell)
    measured = document(results, inputs, arguments.size, arguments.rounds)
    path = arguments.json or arguments.folder / "throughput.json"
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    text = tables(measured)
    print(text)
    if arguments.publish is not None:
        publish(arguments.publish, text)
    return 0


_BEGAN = time.monotonic()


def tell(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
