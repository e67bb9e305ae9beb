"""A script that imports nothing of this project: plain transformers, of whatever release is on the
path, loads exported models, and prints what is not as expected.

Its argument is a folder of models; beside each `NAME/` there is `NAME.safetensors` with the inputs
and what is expected, and `NAME.json` with the head and texts with their expected token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

CLASSES = {
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
    "causal_lm": transformers.AutoModelForCausalLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "none": transformers.AutoModel,
}


@torch.inference_mode()
def check(folder: Path) -> str:
    """What is wrong with a model; "" where nothing is."""
    about = json.loads(folder.with_suffix(".json").read_text())
    tensors = load_file(folder.with_suffix(".safetensors"))
    expected, written = tensors.pop("expected"), tensors.pop("generated", None)
    model = CLASSES[about["head"]].from_pretrained(folder, attn_implementation="eager").eval()
    outputs = next(iter(model(**tensors).values()))
    difference = (outputs - expected).abs().max() / expected.abs().max()
    if not difference < 1e-4:
        return f"outputs differ by {difference:.2g} of the largest"
    if written is not None:
        tensors.pop("decoder_input_ids", None)
        again = model.generate(**tensors, max_new_tokens=4, do_sample=False)
        if not torch.equal(again, written):
            return f"generates {again.tolist()}, not {written.tolist()}"
    if about["texts"]:
        ids = transformers.AutoTokenizer.from_pretrained(folder)(about["texts"]).input_ids
        if ids != about["ids"]:
            return f"reads {about['texts']} as {ids}"
    return ""


def main() -> None:
    """Check all models, and print what was wrong with each."""
    transformers.logging.set_verbosity_error()
    wrong = {}
    for folder in filter(Path.is_dir, Path(sys.argv[1]).iterdir()):
        try:
            wrong[folder.name] = check(folder)
        except Exception as error:  # noqa: BLE001  # of whatever kind: it is told
            wrong[folder.name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"release": transformers.__version__, "wrong": wrong}))


if __name__ == "__main__":
    main()
