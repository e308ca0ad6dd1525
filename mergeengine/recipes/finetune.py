"""Supervised fine-tuning of a causal language model: JSON lines in, a model folder out.

    python -m mergeengine.recipes.finetune MODEL OUTPUT --data train.jsonl

A line is ``{"text": ...}``, ``{"prompt": ..., "completion": ...}``, or ``{"messages": [...]}``, for
which the tokenizer needs a chat template. Of the last two only what the model is to say is trained
on: the completion, the assistant's last message. A plain loop of torch with AdamW (Loshchilov and
Hutter 2019), a linear warm-up and a cosine decay; weights are trained in float32 and written in the
dtype that they came in. Seeded: the same machine and versions give the same bytes.

``--lora RANK`` trains adapters (Hu et al. 2021) by PEFT, an extra (`mergeengine[lora]`), and writes
the model with these merged in. Large models need a trainer that shards them; this one has a single
device.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

IGNORED = -100  # of labels: not trained on

Example = tuple[list[int], list[int]]


class DataError(Exception):
    """A line that is no example: the file, the line, and what was expected."""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mergeengine.recipes.finetune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a model folder, or a name on the hub")
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="most optimizer steps, whatever the epochs")
    parser.add_argument("--batch-size", type=int, default=8, help="examples at a time")
    parser.add_argument("--accumulate", type=int, default=1, help="batches for one optimizer step")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the steps")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-length", type=int, default=1024, help="in tokens; longer is cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="0: all weights")
    parser.add_argument("--device", default=None, help="default: the accelerator if there is one")
    return parser.parse_args(given)


def read_examples(path: Path, tokenizer: Any, max_length: int) -> list[Example]:
    """Ids and labels of every line; DataError for the first that is no example."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            before, after, plain = _parts(json.loads(line), tokenizer)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path}:{number}: expected text, prompt and completion, or messages ({error!r})"
            ) from error
        prompt = tokenizer(before, add_special_tokens=plain)["input_ids"] if before else []
        whole = tokenizer(before + after, add_special_tokens=plain)["input_ids"]
        ends = tokenizer.eos_token_id
        if plain and ends is not None and whole[-1:] != [ends]:
            whole = [*whole, ends]
        ids = whole[:max_length]
        skipped = min(len(prompt), len(ids))
        labels = [IGNORED] * skipped + ids[skipped:]
        if any(label != IGNORED for label in labels[1:]):
            found.append((ids, labels))
    if not found:
        raise DataError(f"{path}: there is nothing to train on (--max-length may cut it all off)")
    return found


def _parts(entry: dict[str, Any], tokenizer: Any) -> tuple[str, str, bool]:
    """What comes before what is trained on, that itself, and whether the tokenizer adds beginning
    and end, which a chat template has written already."""
    if "messages" in entry:
        messages = entry["messages"]
        if messages[-1]["role"] != "assistant":
            raise ValueError("the last message is not the assistant's")
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        before = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        if not whole.startswith(before):
            raise ValueError("the chat template writes another beginning for the last message")
        return before, whole.removeprefix(before), False
    if "prompt" in entry:
        return str(entry["prompt"]), str(entry["completion"]), True
    return "", str(entry["text"]), True


def batches(examples: list[Example], size: int, epochs: int, seed: int) -> Iterator[list[Example]]:
    """Examples in an order of each epoch's own, ``size`` at a time."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [examples[index] for index in order[start : start + size]]


def train(model: Any, examples: list[Example], given: argparse.Namespace) -> None:
    """Train in place."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=given.learning_rate, weight_decay=given.weight_decay)
    a_step = given.batch_size * given.accumulate
    total = given.epochs * math.ceil(len(examples) / a_step)
    total = min(total, given.steps) if given.steps else total
    warmup = max(1, round(given.warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / total)
        ),
    )
    model.train()
    todo = batches(examples, a_step, given.epochs, given.seed)
    for step, group in zip(range(total), todo, strict=False):
        count = sum(label != IGNORED for _, labels in group for label in labels[1:])
        told = 0.0
        for start in range(0, len(group), given.batch_size):
            ids, labels, mask = _padded(group[start : start + given.batch_size], model.device)
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            (loss / count).backward()  # type: ignore[no-untyped-call]
            told += loss.item() / count
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % max(1, total // 20) == 0 or step == total - 1:
            print(f"step {step + 1} of {total}: loss {told:.4f}", flush=True)


def _padded(group: list[Example], device: Any) -> tuple[Any, Any, Any]:
    import torch

    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    labels = torch.full((len(group), length), IGNORED)
    mask = torch.zeros(len(group), length, dtype=torch.long)
    for row, (tokens, wanted) in enumerate(group):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.tensor(wanted)
        mask[row, : len(tokens)] = 1
    return ids.to(device), labels.to(device), mask.to(device)


def with_adapters(model: Any, rank: int, seed: int) -> Any:
    """The model with trainable adapters on all its linear layers but the head."""
    try:
        import peft
    except ImportError:
        sys.exit("--lora needs PEFT, which `pip install 'mergeengine[lora]'` installs")
    import torch

    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, settings)


def main(given: Sequence[str] | None = None) -> None:
    """Fine-tune as the command line says."""
    chosen = arguments(given)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(chosen.seed)
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    try:
        examples = read_examples(chosen.data, tokenizer, chosen.max_length)
    except DataError as error:
        sys.exit(f"error: {error}")
    model: Any = AutoModelForCausalLM.from_pretrained(chosen.model, dtype="auto")
    dtype = model.dtype
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.float().to(device)
    if chosen.lora:
        model = with_adapters(model, chosen.lora, chosen.seed)
    train(model, examples, chosen)
    if chosen.lora:
        model = model.merge_and_unload()
    model.to(dtype).save_pretrained(chosen.output)
    tokenizer.save_pretrained(chosen.output)


if __name__ == "__main__":
    main()
