"""Synthetic bills with summaries, made from a seed.

A bill hides its operative facts among boilerplate in shuffled sections, with other agencies,
amounts and dates as distractors; the summary states these facts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeVar

from pydantic import Field

from compressor.core.settings import Integer
from compressor.data.rows import Rows
from compressor.data.source_base import DataBase, Reporter, Split, check_column, keep_silent

VERSION = 1
"""Raise it when any row changes, so that results made from the older rows are not taken for new."""

_ADJECTIVES = (
    "American", "Better", "Clean", "Coastal", "Community", "Fair", "Family", "Healthy", "Honest",
    "Local", "Modern", "National", "Open", "Rural", "Safe", "Secure", "Stronger", "Urban",
)  # fmt: skip

_NOUNS = (
    "Air", "Bridges", "Care", "Energy", "Farms", "Forests", "Harbors", "Homes", "Jobs", "Markets",
    "Parks", "Ports", "Rails", "Records", "Rivers", "Roads", "Schools", "Wages",
)  # fmt: skip

_ENDS = ("Act", "Improvement Act", "Protection Act", "Reform Act")

_AGENCIES = (
    "Secretary of Agriculture", "Secretary of Commerce", "Secretary of Education",
    "Secretary of Energy", "Secretary of Labor", "Secretary of the Interior",
    "Secretary of Transportation", "Secretary of Veterans Affairs", "Attorney General",
    "Director of the National Park Service", "Librarian of Congress", "Surgeon General",
    "Administrator of General Services", "Administrator of the Small Business Administration",
)  # fmt: skip

_BENEFICIARIES = (
    "apprentices", "city transit agencies", "community colleges", "county courts", "dairy farmers",
    "disabled veterans", "family fishing businesses", "first-generation students", "food banks",
    "foster families", "home care workers", "land trusts", "public libraries", "rural hospitals",
    "school districts", "small manufacturers", "tribal governments", "volunteer fire departments",
)  # fmt: skip

_SUBJECTS = (
    "adult literacy", "battery recycling", "bridge inspection", "broadband access", "clean water",
    "crop insurance", "drought planning", "flood control", "job training", "lead pipe removal",
    "mental health services", "noise reduction", "road repair", "seed storage",
    "solar power", "soil conservation", "teacher recruitment", "wildfire prevention",
)  # fmt: skip

_AIDS = ("award grants", "make loans", "provide training", "give technical assistance")

_AMOUNTS = (
    "$100,000", "$250,000", "$300,000", "$500,000", "$750,000", "$900,000", "$2,000,000",
    "$4,000,000", "$6,000,000", "$8,000,000", "$10,000,000", "$15,000,000", "$20,000,000",
    "$35,000,000", "$60,000,000", "$80,000,000",
)  # fmt: skip

_MONTHS = ("January", "March", "June", "July", "September", "October", "December")

_DEADLINES = ("60 days", "90 days", "120 days", "180 days", "1 year", "2 years", "18 months")

Section = tuple[str, str]

T = TypeVar("T")


@dataclass(frozen=True)
class _Facts:
    """The facts that a bill enacts; `subject` alone is regulated where `beneficiary` is empty."""

    title: str
    agency: str
    aid: str
    beneficiary: str
    subject: str
    amount: str
    year: int
    extras: tuple[str, ...]

    @property
    def duty(self) -> str:
        if self.beneficiary:
            return f"{self.aid} to {self.beneficiary} for {self.subject}"
        return f"{self.aid} for {self.subject}"


def make_bills(rows: int, *, seed: int, split: str) -> Iterator[dict[str, str]]:
    """Make the first `rows` rows of a split; fewer rows are a prefix of more."""
    return (make_bill(seed, split, index) for index in range(rows))


def make_bill(seed: int, split: str, index: int) -> dict[str, str]:
    """Make row `index` of a split: `text` (65 to 140 words) and `summary` (2 or 3 sentences).

    A title belongs to one split only, whatever the seed, so that no text and no summary is in
    two of them.
    """
    rng = Random(f"{seed}/{split}/{index}")  # noqa: S311 - repeatable is the point, not secret
    facts = _draw_facts(rng, split)
    summary = [f"{facts.title} - Directs the {facts.agency} to {facts.duty}."]
    sections = [
        _write_operative(rng, facts),
        _pick_item(rng, (_write_findings, _write_definitions))(rng),
    ]
    if rng.random() < 0.5:
        sections.append(_write_boilerplate(rng))
    if facts.amount:
        summary.append(f"Authorizes {facts.amount} for fiscal year {facts.year}.")
        sections.append(_write_appropriation(rng, facts))
    for name in facts.extras:
        heading, draw, wording, sentence = _EXTRAS[name]
        value = draw(rng)
        sections.append((heading, _pick_item(rng, wording).format(value)))
        summary.append(sentence.format(value))
    text = _write_bill(rng, facts, _shuffle(rng, sections))
    return {"text": text, "summary": " ".join(summary)}


def _pick_item(rng: Random, items: Sequence[T]) -> T:
    """Pick an item. Only `Random.random` is promised to give the same in every Python version."""
    return items[int(rng.random() * len(items))]


def _shuffle(rng: Random, items: Sequence[T]) -> list[T]:
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def _write_title(rng: Random, split: str) -> str:
    """Write a title of this split: a sixth of all pairs of words for each of the unseen two."""
    while True:
        first, second = int(rng.random() * len(_ADJECTIVES)), int(rng.random() * len(_NOUNS))
        if {4: "validation", 5: "test"}.get((first + second) % 6, "train") == split:
            return f"{_ADJECTIVES[first]} {_NOUNS[second]} {_pick_item(rng, _ENDS)}"


def _pick_year(rng: Random, start: int = 2026, years: int = 8) -> int:
    return start + int(rng.random() * years)


def _draw_facts(rng: Random, split: str) -> _Facts:
    helps, funded = rng.random() < 0.75, rng.random() < 0.8
    return _Facts(
        title=_write_title(rng, split),
        agency=_pick_item(rng, _AGENCIES),
        aid=_pick_item(rng, _AIDS) if helps else "issue standards",
        beneficiary=_pick_item(rng, _BENEFICIARIES) if helps else "",
        subject=_pick_item(rng, _SUBJECTS),
        amount=_pick_item(rng, _AMOUNTS) if funded else "",
        year=_pick_year(rng),
        extras=tuple(_shuffle(rng, tuple(_EXTRAS))[: int(rng.random() * 2) if funded else 1]),
    )


def _write_bill(rng: Random, facts: _Facts, sections: list[Section]) -> str:
    """Write a long title, the enacting clause, the short title, then the sections."""
    purposes = ("A BILL", "A BILL For other purposes.", "A BILL To improve programs.")
    purpose = _pick_item(rng, purposes)
    named = _pick_item(rng, ('This Act may be cited as the "{}".', 'This Act is the "{}".'))
    lines = [f"{purpose} Be it enacted,", f"SECTION 1. SHORT TITLE. {named.format(facts.title)}"]
    lines += [f"SEC. {n}. {head}. {body}" for n, (head, body) in enumerate(sections, start=2)]
    return "\n".join(lines)


def _write_operative(rng: Random, facts: _Facts) -> Section:
    """Write the duty, in half of the wordings with another official consulted."""
    other = _pick_item(rng, [agency for agency in _AGENCIES if agency != facts.agency])
    wording = (
        "The {agency} shall {duty}, after consulting the {other}.",
        "Not later than {deadline} after enactment, the {agency} shall {duty}.",
        "The {agency} is directed to {duty}. The {other} may comment.",
        "The {agency} shall {duty}, and keep records of it.",
    )
    body = _pick_item(rng, wording).format(
        agency=facts.agency, duty=facts.duty, other=other, deadline=_pick_item(rng, _DEADLINES)
    )
    return _pick_item(rng, ("PROGRAM", "DUTIES", "IN GENERAL")), body


def _write_appropriation(rng: Random, facts: _Facts) -> Section:
    wording = (
        "There is authorized to be appropriated {amount} for fiscal year {year}.",
        "For fiscal year {year}, {amount} is authorized to be appropriated to carry out this Act.",
        "To carry out this Act, {amount} is authorized for fiscal year {year}, until expended.",
    )
    body = _pick_item(rng, wording).format(amount=facts.amount, year=facts.year)
    return _pick_item(rng, ("APPROPRIATIONS", "FUNDING")), body


def _write_findings(rng: Random) -> Section:
    """Write what Congress found: amounts, years and people that the bill does not act on."""
    year, people = _pick_year(rng, 2001, 24), _pick_item(rng, _BENEFICIARIES)
    amount = _pick_item(rng, _AMOUNTS)
    findings = (
        f"in {year}, {people} lost {amount}",
        f"the need for {_pick_item(rng, _SUBJECTS)} has grown since {_pick_year(rng, 2001, 24)}",
        f"the States spent {_pick_item(rng, _AMOUNTS)} on {_pick_item(rng, _SUBJECTS)} last year",
        f"{_pick_item(rng, _BENEFICIARIES)} have asked the {_pick_item(rng, _AGENCIES)} for help",
    )
    first, second, *_ = _shuffle(rng, findings)
    return "FINDINGS", f"Congress finds that {first}, and that {second}."


def _write_definitions(rng: Random) -> Section:
    terms = (
        '"eligible" means approved by a State',
        f'"small" means having assets below {_pick_item(rng, _AMOUNTS)}',
        f'"records" means records kept since {_pick_year(rng, 2001, 24)}',
        '"State" includes the District of Columbia',
    )
    first, second, *_ = _shuffle(rng, terms)
    return "DEFINITIONS", f"In this Act, {first}, and {second}."


def _write_boilerplate(rng: Random) -> Section:
    agency, month, year = _pick_item(rng, _AGENCIES), _pick_item(rng, _MONTHS), _pick_year(rng)
    past, subject = _pick_year(rng, 1950, 50), _pick_item(rng, _SUBJECTS)
    clauses = (
        ("SEVERABILITY", "If a provision of this Act is held invalid, the rest is not affected."),
        ("RULE OF CONSTRUCTION", f"Nothing in this Act limits the {agency}."),
        ("EFFECTIVE DATE", f"This Act takes effect on {month} 1, {year}."),
        ("PRIOR LAW", f"The Act of {past} on {subject} is repealed."),
    )
    return _pick_item(rng, clauses)


def _draw_date(rng: Random) -> str:
    return f"{_pick_item(rng, _MONTHS)} {_pick_item(rng, (1, 15, 30))}, {_pick_year(rng, 2034, 6)}"


_EXTRAS: dict[str, tuple[str, Callable[[Random], str], tuple[str, str], str]] = {
    "report": (
        "REPORT", lambda rng: _pick_item(rng, _DEADLINES),
        ("Within {}, a report on the results shall be sent to Congress.",
         "A report shall be submitted to Congress within {}, and made public."),
        "Requires a report to Congress within {}.",
    ),
    "penalty": (
        "PENALTIES", lambda rng: f"${_pick_item(rng, (5, 10, 20, 25, 50, 75))},000",
        ("Whoever makes a false statement under this Act shall be fined up to {}.",
         "A false statement in an application is subject to a civil penalty of up to {}."),
        "Sets a penalty of up to {} for false statements.",
    ),
    "sunset": (
        "SUNSET", _draw_date,
        ("The authority provided by this Act ends on {}.",
         "This Act shall cease to have effect on {}, unless extended by law."),
        "Terminates the authority on {}.",
    ),
    "share": (
        "FEDERAL SHARE", lambda rng: f"{_pick_item(rng, (50, 60, 70, 75, 80, 90))} percent",
        ("The Federal share of the cost may not exceed {}.",
         "Of the cost, the Federal share shall be no more than {}."),
        "Limits the Federal share to {} of the cost.",
    ),
}  # fmt: skip
"""Name → heading, what draws a value, wordings of the section, and the summary's sentence."""


class Bills(DataBase):
    """Synthetic bills with summaries, generated: the same on every machine, no network.

    Example: `data: {source: bills, rows: {train: 4000}, seed: 1}`
    """

    source: Literal["bills"]
    seed: Integer = Field(0, description="Another seed is another set of bills.")

    def _count(self, split: Split) -> int:
        count: int = getattr(self.rows, split) or {"train": 4000}.get(split, 200)
        return count

    def content_key(self, split: Split) -> Any:
        made = {"bills": VERSION, "seed": self.seed, "split": split, "n": self._count(split)}
        columns = self.columns()
        return made | ({} if columns == {"text": "text", "summary": "summary"} else columns)

    def check(self, split: Split, report: Reporter, warn: Reporter = keep_silent) -> None:
        """Report a column that is not made."""
        if self.has_labels:
            report("task", f"bills have summaries, and no labels for {self.task}; set data")
            return
        for field, column in self.columns().items():
            check_column(column, ["text", "summary"], field, "bills have", report)

    def load(self, split: Split) -> Rows:
        made = list(make_bills(self._count(split), seed=self.seed, split=split))
        targets = [row[self.target] for row in made] if self.target else []
        return Rows([row[self.text] for row in made], targets)
