"""Loads directories by plain transformers, in a process that has nothing of this project.

`python reload.py FILE`: a JSON list of (class, directory); beside each `config.json` it leaves the
logits of made-up ids, and a directory that does not load leaves the reason.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

LOGITS, REASON = "reloaded.pt", "reason.txt"


@torch.no_grad()
def fingerprint(model: Any) -> torch.Tensor:
    """Logits of made-up ids."""
    ids = torch.arange(3, 19)[None]
    more = {"decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else {}
    result: torch.Tensor = model(input_ids=ids, **more).logits
    return result


if __name__ == "__main__":
    for auto_class, folder in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            model = getattr(transformers, auto_class).from_pretrained(folder).eval()
            torch.save(fingerprint(model), Path(folder, LOGITS))
        except Exception as error:  # noqa: BLE001  # the other directories are tried all the same
            Path(folder, REASON).write_text(repr(error), encoding="utf-8")
