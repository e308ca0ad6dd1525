"""The papers' figures, as far as their abstracts and the authors' own page of results give them.

Lin et al. 2025, "Efficient Model Development through Fine-tuning Transfer", arXiv:2503.20110, and
their repository, github.com/pjlintw/finetuning-transfer. Cao et al. 2025, "ParamΔ for Direct Weight
Mixing: Post-Train Large Language Model at Zero Cost", arXiv:2504.21023. Other figures are not
given here.
"""

_NOT_GIVEN = "the figures are not given here"

MATRIX = (
    f"Lin et al., Table 3 (OLMo 2 7B checkpoints): {_NOT_GIVEN}; later bases use a transferred "
    "delta better, and near neighbours transfer best."
)

# Accuracy in percent on GSM8K and IFEval, by role.
RECYCLING = {"base": "56.6, 36.4", "recycled": "79.8, 83.3", "tuned": "86.5, 80.5"}
BACKPORTING = {"base": "55.6, 34.5", "recycled": "82.8, 76.6", "tuned": "81.1, 76.6"}
RECYCLING_ABOUT = (
    "Lin et al., Table 1, as in their repository: GSM8K, IFEval. Upper half: Llama 3.1 8B, the "
    "delta of Llama 3.0 Instruct recycled; lower half: Llama 3.0 8B, that of 3.1 Instruct "
    "backported."
)

LANGUAGE = (
    "Lin et al., Table 2: a language's fine-tune carried from Llama 3.0 8B Instruct to 3.1 8B "
    "Instruct gains 4.7 (Malagasy) and 15.5 (Turkish) points of Global MMLU; other figures are not "
    "given here."
)
CURVES = (
    f"Lin et al., Table 4 and Figure 2: {_NOT_GIVEN}; the merged model is a stronger and more "
    "efficient start for further fine-tuning."
)
ITERATIVE = (
    f"Lin et al., Table 6: {_NOT_GIVEN}; the iterative way improves efficiency and effectiveness."
)
LINES = (
    "Lin et al. argue that transfer works best where models are linearly connected; no figures of "
    "the loss along the line are given here."
)
SCALING = (
    f"Cao et al., scaling and combinations of deltas: {_NOT_GIVEN}; with scaling 1 the 70B model "
    "has about 95 % of Llama 3.1 Instruct's performance on average."
)
GEOMETRY = f"Cao et al., norms and cosines of deltas: {_NOT_GIVEN}."
