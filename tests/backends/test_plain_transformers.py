"""What an export's config says is what it holds: the newest transformers and the last 4 load it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compressor.models.checkpoint import Checkpoint, fit_transformers_4
from compressor.models.facts import load_architecture
from compressor.models.loading import has_untied_head
from compressor.models.surgery import keep_layers
from compressor.stages.base import Inputs
from compressor.stages.export import Export
from compressor.stages.prune import Prune
from compressor.stages.slice import Slice
from tests.harness.models import (
    IDS,
    PICO,
    TWO_VOCABULARIES,
    UNTIED,
    WINDOW,
    build_case,
    outputs,
)
from tests.harness.stages import stage_context
from tests.support.trimmed_tokenizers import KINDS, rows, t5

FOUR = Path(__file__).parent.parent.parent / "build/transformers-4"
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
    {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e3, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
]  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e3,
        "original_max_position_embeddings": 16}  # fmt: skip
EQUAL_VOCABULARIES = TWO_VOCABULARIES | {"decoder_vocab_size": 50}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in PICO},
    **{f"{kind}_untied": (kind, UNTIED) for kind in ("t5", "mt5", "longt5", "bart", "mbart")},
    **{f"{kind}_untied": (kind, UNTIED) for kind in ("pegasus", "marian", "gpt2")},
    **{f"{kind}_tied": (kind, {"tie_word_embeddings": True}) for kind in ("llama", "qwen3")},
    "marian_two_vocabularies": ("marian", EQUAL_VOCABULARIES),
    **{f"llama_{rope['rope_type']}": ("llama", {"rope_parameters": rope}) for rope in ROPES},
    "qwen2_yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3_theta": ("qwen3", {"rope_parameters": ROPES[0]} | WINDOW),
}
SCALED = {"t5": False, "longt5": False, "t5_untied": True, "longt5_untied": True}
"""Names with `_scaled_otherwise`: whether outputs are scaled, beside which heads are not usual."""


def build_checkpoint(name: str) -> Checkpoint:
    """A pico model with weights so large that everything in it shows."""
    usual = name.removesuffix("_scaled_otherwise")
    model_type, changes = MODELS[usual]
    checkpoint = build_case(model_type, changes, load_architecture(model_type).HEADS[0])
    model = checkpoint.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.mul_(5)
    if name != usual:
        model.config.scale_decoder_outputs = SCALED[usual]
    if model_type in ("pegasus", "marian") and changes == UNTIED:  # as in what is published
        for stack in (model.get_encoder(), model.get_decoder()):
            stack.embed_tokens.weight.data.copy_(model.model.shared.weight)
    return checkpoint


def compressed(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Pruned, with fewer layers and neurons."""
    where = stage_context(folder)
    stacks = checkpoint.derive_facts().list_stacks()
    checkpoint = keep_layers(
        checkpoint, {name: [stack.layers - 1] for name, stack in stacks.items()}
    )
    checkpoint.save(folder / "shrunk")
    groups = checkpoint.derive_facts().list_groups()
    parts = [path for path in groups if "." in path or path == "lm_head"]
    prune = Prune(amounts=dict.fromkeys(parts, 0.3))
    checkpoint = prune.run(Inputs(folder / "shrunk"), where)
    checkpoint.save(folder / "pruned")
    return Slice(feed_forward=0.5).run(Inputs(folder / "pruned"), where)


def export(checkpoint: Checkpoint, folder: Path, name: str) -> None:
    """Export as a recipe does, and write what plain transformers must find beside it."""
    model = checkpoint.model
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    expected = inputs | {"expected": outputs(model)}
    if model.config.is_encoder_decoder:
        expected["decoder_input_ids"] = IDS[:, :5]
    if model.can_generate():
        expected["generated"] = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    texts = [] if checkpoint.tokenizer is None else rows()[:4]
    ids = [] if checkpoint.tokenizer is None else checkpoint.tokenizer(texts).input_ids
    checkpoint.save(folder / "source")
    where = stage_context(folder / "made")
    Export(parity=None).run(Inputs(folder / "source"), where)
    (folder / "made/model").rename(folder / "models" / name)
    path = folder / "models" / name
    save_file({k: v.contiguous() for k, v in expected.items()}, path.with_suffix(".safetensors"))
    about = {"head": checkpoint.head, "texts": texts, "ids": ids}
    path.with_suffix(".json").write_text(json.dumps(about))
    claimed = where.metrics["claimed_bytes"]
    assert claimed <= (path / "model.safetensors").stat().st_size < claimed + 20_000, name


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model as it is and compressed, and every kind of tokenizer."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "models").mkdir()
    for name in [*MODELS, *(f"{name}_scaled_otherwise" for name in SCALED)]:
        checkpoint = build_checkpoint(name)
        export(checkpoint, folder, name)
        export(compressed(checkpoint, folder), folder, f"{name}_compressed")
    for kind in KINDS:
        export(t5(kind()), folder, f"tokenizer_{kind.__name__}")
    return folder / "models"


@pytest.mark.parametrize("release", ["5", "4"])
def test_plain_transformers_loads_what_was_exported(exported, release) -> None:
    """In a fresh process: outputs within 1e-4, the same tokens written, texts read as before."""
    if release == "4" and not (FOUR / ".installed").is_file():
        pytest.skip("no transformers 4 here: make build/transformers-4/.installed")
    paths = {"PYTHONPATH": str(FOUR) if release == "4" else "", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parent / "plain.py"
    done = subprocess.run(
        [sys.executable, script, exported], env=os.environ | paths, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["release"].startswith(f"{release}.")
    assert len(report["wrong"]) == 2 * (len(MODELS) + len(SCALED)) + len(KINDS)
    assert {name: wrong for name, wrong in report["wrong"].items() if wrong} == {}


def test_a_model_that_transformers_4_cannot_hold_is_named() -> None:
    """It has one table for both stacks of a Pegasus, and one size for both of a Marian's."""
    differing = build_case("pegasus", UNTIED, "seq2seq_lm")
    assert not fit_transformers_4(differing.model)
    assert not fit_transformers_4(build_case("marian", TWO_VOCABULARIES, "seq2seq_lm").model)
    assert fit_transformers_4(build_checkpoint("pegasus_untied").model)
    assert has_untied_head(build_checkpoint("pegasus_untied").model)
