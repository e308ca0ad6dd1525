"""Evaluations by lm-evaluation-harness, an extra: its command line, and what it measured.

https://github.com/EleutherAI/lm-evaluation-harness: ``lm_eval`` writes a file
``results_<time>.json`` below its ``--output_path``, whose ``results`` are metrics by task.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from mergeengine.chain.chain import Evaluation
from mergeengine.errors import StepError

PROGRAM = "lm_eval"
RESULTS = "results.json"
Results = dict[str, dict[str, float]]


def arguments_of(work: Evaluation, model: Path, folder: Path, output: Path) -> list[str]:
    """The harness's command line; StepError where it is not installed."""
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = shutil.which(PROGRAM, path=beside)
    if program is None:
        raise StepError(
            f"there is no {PROGRAM}: evaluations need lm-evaluation-harness, which "
            "`pip install 'mergeengine[evaluation]'` installs"
        )
    arguments = [program, "--model", "hf", "--model_args", f"pretrained={model}"]
    arguments += ["--tasks", ",".join(work.tasks), "--output_path", str(output)]
    if work.task_folder is not None:
        arguments += ["--include_path", str(folder / Path(work.task_folder).expanduser())]
    return [*arguments, *work.arguments]


def gather_results(folder: Path) -> Results:
    """Put the metrics of the file that the harness left into ``results.json``, and give them.

    StepError where it left none. Numbers alone are metrics; the filter ``none`` is not named.
    """
    files = sorted(folder.rglob("results*.json"), key=lambda path: path.stat().st_mtime_ns)
    files = [file for file in files if file != folder / RESULTS]
    if not files:
        raise StepError(f"{PROGRAM} ended with 0 but left no results below {folder}")
    try:
        measured = json.loads(files[-1].read_text(encoding="utf-8"))["results"]
        found: Results = {
            task: {
                name.removesuffix(",none"): float(value)
                for name, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            for task, metrics in measured.items()
        }
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StepError(f"{files[-1]}: not results of {PROGRAM} ({error!r})") from error
    text = json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    return found


def read_results(folder: Path) -> Results:
    """The metrics of an evaluation that is done."""
    found: Results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return found
