"""Synthetic messages to a shop, with labels, made from a seed.

A message says what its labels stand for, among sentences that say nothing and sentences that deny a
label in its own words ("there is no need to hurry").
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Literal

from pydantic import Field

from compressor.core.settings import Integer, Listed
from compressor.data.rows import Rows, require_labels
from compressor.data.source_base import DataBase, Label, Reporter, Split, check_column, keep_silent

VERSION = 1
"""Raise it when any row changes, so that results made from the older rows are not taken for new."""

_MOST_LABELS = 3

_SHARE_DENIED = 0.4
"""How often a label that a message does not have is denied in it."""

_GIVEN = {
    "refund": (
        "I want my money back for the {thing}", "please refund the {price} I paid for the {thing}",
        "the only thing I ask for is a refund", "send the {price} back to my account",
        "I would rather have my money than another {thing}",
    ),
    "delivery": (
        "the {thing} has not arrived in {city}", "my parcel is {days} late",
        "the driver left the parcel with a stranger in {city}",
        "nobody delivered the {thing} when you said",
        "the parcel went to {city} and came back to you",
    ),
    "damage": (
        "the {thing} came broken", "there is a crack in the {thing}",
        "the {thing} stopped working after {days}", "the box was crushed and so was the {thing}",
        "half of the {thing} is missing",
    ),
    "praise": (
        "I love the {thing}", "your team in {city} was wonderful",
        "this is the best {thing} I ever had", "thank you for the kind help",
        "everything about the {thing} is a joy",
    ),
    "urgent": (
        "I need this by tomorrow", "please hurry because we leave in {days}",
        "this cannot wait any longer", "answer me today", "every hour counts for us",
    ),
    "question": (
        "can the {thing} be used in {city}", "how do I clean the {thing}",
        "does the {thing} come in another color", "which {thing} fits a small kitchen",
        "what does the {thing} weigh",
    ),
}  # fmt: skip

_DENIED = {
    "refund": (
        "I do not want my money back", "a refund of {price} is not what I ask for",
        "keep the {price}", "I would rather have another {thing} than my money",
    ),
    "delivery": (
        "the {thing} arrived in {city} when you said", "the parcel was not late",
        "the driver was on time", "the delivery itself was no trouble",
    ),
    "damage": (
        "the {thing} is not broken", "there is no crack in it", "the {thing} still works",
        "nothing is missing from the box",
    ),
    "praise": (
        "I cannot say that I love the {thing}", "your team in {city} was not wonderful",
        "it is not the best {thing} I ever had", "I used to love this shop",
    ),
    "urgent": (
        "there is no need to hurry", "this can wait until we are back in {days}",
        "you need not answer today", "next week is soon enough",
    ),
    "question": (
        "I know how to clean the {thing}", "I do not ask which {thing} fits",
        "I have no question", "what the {thing} weighs is plain to me",
    ),
}  # fmt: skip

LABELS = tuple(_GIVEN)

_FILLER = (
    "I bought the {thing} {days} ago", "my order number is {number}", "I live near {city}",
    "it was a present for my sister", "I paid {price}", "I wrote to you {days} ago",
    "we have had a {thing} before", "my neighbor in {city} told me of your shop",
)  # fmt: skip

_SLOTS = {
    "thing": (
        "kettle", "lamp", "backpack", "blender", "radio", "tent", "chair", "heater", "camera",
        "bicycle", "toaster", "clock", "suitcase", "fan", "printer", "guitar",
    ),
    "city": ("Leeds", "Porto", "Austin", "Turin", "Lyon", "Gdansk", "Bergen", "Seville"),
    "days": ("two days", "three days", "four days", "a week", "two weeks", "a month"),
    "price": ("$15", "$20", "$35", "$49", "$60", "$85", "$120"),
    "number": ("4417", "8820", "1935", "7002", "5561", "3348"),
}  # fmt: skip

_OPENINGS = ("Hello.", "Good morning.", "Dear team,", "Hi,", "")


def make_messages(
    count: int, *, seed: int, split: str, single: bool
) -> Iterator[tuple[str, frozenset[str]]]:
    """Make `count` messages with their labels: none to three of `LABELS`, or one if `single`.

    The same arguments give the same messages; a larger count goes on where a smaller one ends.
    """
    chance = Random(f"messages/{seed}/{split}/{single}")  # noqa: S311  # no secret
    for _ in range(count):
        given = chance.sample(LABELS, 1 if single else chance.randint(0, _MOST_LABELS))
        denied = [name for name in LABELS if name not in given]
        parts = [chance.choice(_GIVEN[name]) for name in given]
        parts += [chance.choice(_DENIED[n]) for n in denied if chance.random() < _SHARE_DENIED]
        parts += chance.sample(_FILLER, chance.randint(0, 2))
        chance.shuffle(parts)
        yield _write_message(parts, chance), frozenset(given)


def _write_message(parts: list[str], chance: Random) -> str:
    slots = {name: chance.choice(values) for name, values in _SLOTS.items()}
    sentences = [part.format(**slots) for part in parts]
    text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
    return f"{chance.choice(_OPENINGS)} {text}".strip()


class Messages(DataBase):
    """Synthetic messages to a shop with labels, generated: the same on every machine, no network.

    Each message has up to three of six labels (`multi_label`), or exactly one (`single_label`).
    Example: `data: {source: messages, task: multi_label, rows: {train: 4000}}`
    """

    source: Literal["messages"]
    task: Literal["multi_label", "single_label"] = Field(
        "multi_label", description="Several labels a message, none included, or exactly one."
    )
    labels: Listed[Label] = Field(LABELS, description="Which of the six are learned.")
    seed: Integer = Field(0, description="Another seed is another set of messages.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 500)
        return count

    def content_key(self, split: Split) -> Any:
        made = {"messages": VERSION, "seed": self.seed, "split": split}
        return made | {"n": self._count(split), "task": self.task, "labels": list(self.labels)}

    def check(self, split: Split, report: Reporter, warn: Reporter = keep_silent) -> None:
        """Report a column or a label that is not made."""
        check_column(self.text, ["text"], "text", "messages have", report)
        if self.label is not None:
            report("label", "messages have no such column; set data.task and data.labels")
        for index, name in enumerate(self.labels):
            check_column(name, list(LABELS), f"labels.{index}", "messages have", report)
        if self.task == "single_label" and set(self.labels) != set(LABELS):
            report("labels", "single_label wants all six: each message has one of them")

    def load(self, split: Split) -> Rows:
        single = self.task == "single_label"
        made = make_messages(self._count(split), seed=self.seed, split=split, single=single)
        texts, names = zip(*made, strict=True)
        labels = [[int(name in given) for name in self.labels] for given in names]
        labels = [[row.index(1)] for row in labels] if single else labels
        require_labels(labels, self, split, "the generated messages")
        return Rows(list(texts), [], labels)
