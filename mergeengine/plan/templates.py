"""Plans to start from, as ``mergeengine init`` writes them."""

from __future__ import annotations

from mergeengine.plan.json_schema import MODELINE

_RECYCLE = """\
# Recycling: what fine-tuning changed in an old version, added to the new one.
version: 1
name: recycled
target: ./new-base                # the model that receives the delta, or org/name[@revision]
source_base: ./old-base           # the delta is source_ft - source_base
source_ft: ./old-instruct
scaling: 1.0                      # how much of it
"""
_BACKPORT = """\
# Backporting: what fine-tuning changed in the new version, added to the old one.
version: 1
name: backported
target: ./old-base                # the model that receives the delta, or org/name[@revision]
source_base: ./new-base           # the delta is source_ft - source_base
source_ft: ./new-instruct
scaling: 1.0                      # how much of it
"""
_MULTI = """\
# Several deltas: target + a * D1 + b * D2.
version: 1
name: several
vars: {instruct: 0.7, domain: 0.5}  # --set instruct=0.8, --sweep domain=0.3,0.5
target: ./base                    # or org/name[@revision]
source_base: ./base               # of every source that names no other
sources:
  - name: instruct
    source_ft: ./instruct
    scaling: ${instruct}
  - name: domain
    source_ft: ./domain
    scaling: ${domain}
    masks:
      - {match: "*embed*", scale: 0}   # leave the embedding to the other one
"""
_PARAMDELTA = """\
# ParamDelta: post-training of the old base, carried to a new base as it is, on every tensor.
version: 1
name: paramdelta
target: ./new-base                # or org/name[@revision]
source_base: ./old-base           # the delta is source_ft - source_base
source_ft: ./old-instruct
scaling: 1.0
"""
_LANGUAGE = """\
# A language's fine-tune of one instruct model, carried to the next instruct model.
version: 1
name: language-carried
target: ./new-instruct            # or org/name[@revision]
source_base: ./old-instruct       # the delta is source_ft - source_base
source_ft: ./old-instruct-in-language
scaling: 1.0
"""
_PRETRAINED = """\
# Continual pretraining: instruction following, put back onto a base that was trained further.
version: 1
name: pretrained-instruct
target: ./base-trained-further    # or org/name[@revision]
source_base: ./base               # the delta is source_ft - source_base
source_ft: ./instruct
scaling: 1.0
"""
_REST = """\
# masks:                          # of the entries that match a tensor, the first decides
#   - {layers: "0-3", scale: 0.0} # these layers stay the target's
#   - {match: "*.mlp.*", scale: 0.5}
on_missing: error                 # a tensor without a delta; or keep_target
on_extra: error                   # a tensor that the target has not; or ignore, copy
on_mismatch: error                # a tensor of another shape; or keep_target
vocabulary: align                 # rows by their tokens; or union, target, ...
on_nonfinite: error               # infinities or NaN in what is computed; or keep_target, allow
output:
  path: ./merged                  # relative to this file, as are the models
  dtype: bfloat16                 # without this line, as the target has it
  tokenizer: source_ft            # or target, or a model
"""

TEMPLATES = {
    "recycle": _RECYCLE,
    "backport": _BACKPORT,
    "multi": _MULTI,
    "paramdelta": _PARAMDELTA,
    "language": _LANGUAGE,
    "pretrained": _PRETRAINED,
}


def template(kind: str) -> str:
    """The text of a plan of that kind: every key that one needs at first, and what it means."""
    return f"{MODELINE}\n{TEMPLATES[kind]}{_REST}"
