"""A chain to start from, as ``mergeengine init chain`` writes it."""

from __future__ import annotations

from mergeengine.chain.json_schema import MODELINE

CHAIN = f"""\
{MODELINE}
# A fine-tune carried along as new versions of its base come out: `mergeengine run chain.yaml`.
version: 1
name: lineage
models:                           # short names; a word without / is one of these, or a step
  old: ./old-base                 # or org/name[@revision]
  new: ./new-base
output_root: out                  # outputs go to out/<id>, what programs say to out/logs
steps:
  - id: old_ft
    run:                          # runs with --allow-commands only; read what you allow
      command: ["{{python}}", -m, mergeengine.recipes.finetune, "{{old}}", "{{output}}",
                --data, data.jsonl]
      files: [data.jsonl]         # the step runs again when these change
  - id: new_start                 # new + (old_ft - old)
    plan: {{target: new, source_base: old, source_ft: old_ft, scaling: 1.0}}
    keep: false                   # removed when no step needs it any more
  - id: new_ft
    run:
      command: ["{{python}}", -m, mergeengine.recipes.finetune, "{{new_start}}", "{{output}}",
                --data, data.jsonl]
      files: [data.jsonl]
# - id: on_the_cluster            # what is done elsewhere: the chain says so, waits, and goes on
#   external: {{about: sbatch train.sh, uses: [new_start]}}
# - id: scores                    # lm-evaluation-harness: pip install 'mergeengine[evaluation]'
#   evaluate: {{model: new_ft, tasks: [my_task], task_folder: tasks}}
"""
