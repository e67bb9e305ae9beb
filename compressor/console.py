"""The console that tables, bars and lines are printed on. What they say is for others to know."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from compressor.printed import ACTING, printable


class PlainConsole(Console):
    """A console on which no text sends the terminal an order of its own: only rich does."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not ACTING.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
