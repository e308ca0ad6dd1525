"""The little world of the trainings: skills on words of letters, in two notations.

A *base* model reads terse notes (``<ABCD=DCBA``, `` reverse ABCD=DCBA``); a *fine-tuned* model is
asked in sentences (``Write ABCD backwards.``, in Latin
``Scribe ABCD a tergo.``). A skill is applied to a word of random capital
letters. Every word belongs for good to one side of a split: the held-out words, one in eight, are
recognised by a checksum of their letters alone. The supply for training rejects them, whatever
the skill and the notation, so no evaluation question can occur in pretraining or in fine-tuning.
"""

from __future__ import annotations

import random
import string
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HELD_OUT_ONE_IN = 8
MAX_GAP = 8


def is_held_out(word: str) -> bool:
    """Whether a word is kept for evaluation (a property of its letters alone)."""
    return zlib.crc32(word.encode()) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Skill:
    """One thing to know: its sign and its name in notes, its wordings in two languages."""

    name: str
    sign: str
    wordings: tuple[str, ...]
    latin: tuple[str, ...]
    answer: Callable[[str], str]


def _next_letters(word: str) -> str:
    letters = string.ascii_uppercase
    return "".join(letters[(letters.index(letter) + 1) % len(letters)] for letter in word)


SKILLS: tuple[Skill, ...] = (
    Skill(
        "reverse",
        "<",
        ("Please reverse {}.", "Write {} backwards.", "How does {} read from back to front?"),
        ("Inverte {} quaeso.", "Scribe {} a tergo."),
        lambda word: word[::-1],
    ),
    Skill(
        "shift",
        ">",
        ("Please shift {}.", "Replace every letter of {} by the next one.", "What follows {}?"),
        ("Promove {} quaeso.", "Quid post {} venit?"),
        _next_letters,
    ),
    Skill(
        "rotate",
        "@",
        ("Please rotate {}.", "Move the first letter of {} to the end.", "How does {} turn?"),
        ("Volve {} quaeso.", "Primam de {} pone ultimam."),
        lambda word: word[1:] + word[0],
    ),
    Skill(
        "swap",
        "%",
        ("Please swap {}.", "Exchange the outer letters of {}.", "What if {} trades its ends?"),
        ("Permuta {} quaeso.", "Muta extremas de {}."),
        lambda word: word[-1] + word[1:-1] + word[0],
    ),
    Skill(
        "head",
        "[",
        ("Please give the head of {}.", "Keep the first two letters of {}.", "How does {} begin?"),
        ("Da caput de {}.", "Duas primas de {} serva."),
        lambda word: word[:2],
    ),
    Skill(
        "tail",
        "]",
        ("Please give the tail of {}.", "Keep the last two letters of {}.", "How does {} stop?"),
        ("Da caudam de {}.", "Duas ultimas de {} serva."),
        lambda word: word[-2:],
    ),
    Skill(
        "spell",
        "-",
        ("Please spell {}.", "Put a dash between the letters of {}.", "How is {} written slowly?"),
        ("Recita {} quaeso.", "Distingue {} lineolis."),
        lambda word: "-".join(word),
    ),
    Skill(
        "sort",
        "~",
        ("Please sort {}.", "Put the letters of {} in order.", "What is {} from A to Z?"),
        ("Ordina {} quaeso.", "Quo ordine sunt {}?"),
        lambda word: "".join(sorted(word)),
    ),
    Skill(
        "double",
        "*",
        ("Please double {}.", "Write every letter of {} twice.", "How does {} stutter?"),
        ("Gemina {} quaeso.", "Scribe {} bis per litteras."),
        lambda word: "".join(letter * 2 for letter in word),
    ),
)


@dataclass(frozen=True)
class Task:
    """One skill applied to one word: as a note, as a question, and the answer to both."""

    skill: str
    word: str
    note: str
    question: str
    answer: str


def tasks(
    seed: int, lengths: tuple[int, int], *, held_out: bool, latin: bool = False
) -> Iterator[Task]:
    """An endless supply of tasks from one side of the split, on words of these lengths."""
    draw = random.Random(seed)
    while True:
        skill = draw.choice(SKILLS)
        word = _word(draw, lengths, held_out)
        yield Task(
            skill=skill.name,
            word=word,
            note=_note(draw, skill, word),
            question=draw.choice(skill.latin if latin else skill.wordings).format(word),
            answer=skill.answer(word),
        )


def held_out_tasks(
    seed: int, lengths: tuple[int, int], count: int, *, latin: bool = False
) -> list[Task]:
    """Distinct tasks for evaluation."""
    found: dict[str, Task] = {}
    for task in tasks(seed, lengths, held_out=True, latin=latin):
        found.setdefault(task.question, task)
        if len(found) == count:
            break
    return list(found.values())


def _word(draw: random.Random, lengths: tuple[int, int], held_out: bool) -> str:
    while True:
        word = "".join(draw.choices(string.ascii_uppercase, k=draw.randint(*lengths)))
        if is_held_out(word) == held_out:
            return word


def _note(draw: random.Random, skill: Skill, word: str) -> str:
    """The sign or the name of the skill, before or after the word, now and then a gap."""

    def gap() -> str:
        return " " * draw.randint(1, MAX_GAP) if draw.random() < 0.1 else ""

    parts = [skill.sign if draw.random() < 0.5 else f" {skill.name}", word]
    if draw.random() < 0.5:
        parts.reverse()
    return f"{parts[0]}{gap()}{parts[1]}{gap()}="
