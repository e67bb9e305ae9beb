"""The console that tables, bars and lines are printed on. What they say is for others to know."""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from compressor.core.printing import ACTING, escape_controls


class Console(console.Console):
    """A console on which no text sends the terminal an order of its own: only rich does."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not ACTING.search(segment.text):
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)

    def say(self, text: str | Text) -> None:
        """Print a text as it is: nothing in it is markup, and only a terminal breaks its lines."""
        self.print(text, highlight=False, markup=False, soft_wrap=True)
