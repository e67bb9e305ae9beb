"""llm-compressor's sequential SparseGPT on a saved model and rows: in its own environment.

    python sparsegpt.py MODEL ROWS THREADS OUT

Imports nothing of ours. Prints what `blocks.py` reads: seconds a layer, and the peak of memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from llmcompressor import oneshot
from llmcompressor.core import LifecycleCallbacks
from llmcompressor.modifiers.pruning import SparseGPTModifier
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

STATUS = Path("/proc/self/status")


def memory(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(folder: Path, rows: Path, threads: int, out: Path) -> None:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = sum(float(p.detach().sum()) * 0 + p.nbytes for p in model.parameters())  # all read
    batches = [
        {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        for ids in load_file(rows)["ids"]
    ]
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))  # it wants a tokenizer, and reads none
    reader = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a", pad_token="a")
    ends: list[tuple[float, float]] = []
    end_of_epoch = LifecycleCallbacks.sequential_epoch_end

    def timed(*arguments: Any, **options: Any) -> Any:
        result = end_of_epoch(*arguments, **options)
        ends.append((time.perf_counter(), time.process_time()))
        return result

    LifecycleCallbacks.sequential_epoch_end = timed
    recipe = SparseGPTModifier(sparsity=0.5, targets=["Linear"], ignore=["re:.*lm_head.*"])
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = memory("VmRSS"), time.perf_counter()
    oneshot(model=model, tokenizer=reader, dataset=loader, recipe=recipe, pipeline="sequential")
    result = {
        "seconds": time.perf_counter() - started,
        "ends": ends,
        "extra_bytes": memory("VmHWM") - before,
        "weight_bytes": weights,
    }
    pruned = {n: p.detach().contiguous() for n, p in model.named_parameters() if "_proj" in n}
    save_file(pruned, out)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
