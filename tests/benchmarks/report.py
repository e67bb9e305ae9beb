"""Where a benchmark's result goes. No measuring here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(name: str, result: dict[str, Any]) -> None:
    """Print a result and keep it in `outputs/bench/<name>.json`."""
    folder = Path("outputs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)
