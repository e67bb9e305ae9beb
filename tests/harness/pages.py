"""Read the pages that runs, sweeps and comparisons leave, without a browser and in one."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

EVIL = """</script><script>document.title='broken'</script> "quoted" 'too' & 😀 \u2028 {{9**9}}"""


class Text(HTMLParser):
    """The text of a page as a browser would take it, scripts and styles left out."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.plain, self.skipped = "", ""
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self.skipped = tag if tag in {"script", "style"} else ""
        self.plain += " "

    def handle_endtag(self, tag: str) -> None:
        self.skipped = ""
        self.plain += " "

    def handle_data(self, data: str) -> None:
        self.plain += "" if self.skipped else data

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", self.plain)


def check_themes(page: Any, axis: str) -> None:
    """Ground and axes are light or dark as the machine says, while the page is open too."""
    ground = "getComputedStyle(document.body).backgroundColor"
    tick = f"getComputedStyle(document.querySelector('{axis}')).fill"
    for theme in ("light", "dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(600)
        for script, is_light in ((ground, theme == "light"), (tick, theme == "dark")):
            numbers = re.findall(r"\d+", page.evaluate(script))
            assert (sum(map(int, numbers[:3])) / 765 > 0.5) == is_light
