"""How large a YAML file may be, and what in it would mean another thing than it says.

Found before anything is built of the file: a few lines whose aliases stand for each other can be
billions of values, and brackets within brackets end Python's parser. What values mean is elsewhere.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LARGEST = 200_000
"""Bytes; the largest recipe that comes with the package has 4,000."""
MOST = 20_000
"""Values, each alias counted as all that it stands for."""
DEEPEST = 50
"""Lists and mappings within each other."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser takes a hundredth of a second where Python's own takes one."""
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


def text_of(file: Path) -> str:
    """The text of a YAML file. Raises ValueError where it is none, or too much of one."""
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for, a device never ends
        raise ValueError(f"{str(file)!r} is no regular file")
    if about.st_size > LARGEST:
        raise ValueError(f"has {about.st_size:,} bytes; a YAML file has at most {LARGEST:,} here")
    text = file.read_text(encoding="utf-8-sig")
    if (found := excess(text)) is not None:
        raise ValueError(found)
    return text


def excess(text: str) -> str | None:
    """What is too much in a text of YAML, or None. What is not YAML its parser will tell."""
    counted = _Counted()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if (found := counted.take(event)) is not None:
                return found
    except yaml.YAMLError:
        return None
    return None


@dataclass
class _Counted:
    """The values so far, and those of each anchor."""

    total: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    open: list[tuple[str | None, int]] = field(default_factory=list)
    """(anchor, values before it) of each list and mapping that has not ended."""

    def take(self, event: Any) -> str | None:
        """Count one of the parser's events; what is too much by now."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            anchor = str(event.anchor)
            if any(each == anchor for each, _ in self.open):
                return f"line {line}: *{anchor} stands within itself"
            self.total += self.sizes.get(anchor, 1)
        elif isinstance(event, yaml.CollectionEndEvent):
            ended, before = self.open.pop()
            if ended is not None:
                self.sizes[ended] = self.total - before
        elif isinstance(event, yaml.NodeEvent):
            if (tag := getattr(event, "tag", None)) is not None:
                # PyYAML itself fails at `!!bool x` and `!!timestamp x`.
                tag = tag.replace("tag:yaml.org,2002:", "!!")
                cure = "write the value without one, a text in quotes"
                return f"line {line}: the tag {tag:.60} is not allowed; {cure}"
            if isinstance(event, yaml.CollectionStartEvent):
                self.open.append((event.anchor, self.total))
            elif event.anchor is not None:
                self.sizes[event.anchor] = 1
            self.total += 1
        if len(self.open) > DEEPEST:
            return f"line {line}: more than {DEEPEST} levels of brackets"
        if self.total > MOST:
            return f"more than {MOST:,} values (an alias is all that it stands for)"
        return None


def misread(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """(message, line) of each number that YAML 1.1 reads in base 8, which nobody means by it."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from misread(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from misread(value)
    elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int":
        digits = node.value.replace("_", "")
        if node.style is None and _OCTAL.fullmatch(digits) and int(digits, 8):
            decimal = f"{'-' if digits[0] == '-' else ''}{digits.lstrip('+-0')}"
            message = (
                f"{node.value} is {int(digits, 8)} to YAML, which reads a number that begins with "
                f"0 in base 8; write {decimal}, or {node.value!r} for a text"
            )
            yield message, node.start_mark.line + 1
