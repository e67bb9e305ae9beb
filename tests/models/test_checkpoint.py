"""Checkpoints: what is saved is what comes back, and nothing of a file runs."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5Config

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model, has_untied_head, load_pretrained

T5 = {
    "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4,
    "num_layers": 2, "decoder_start_token_id": 0,
}  # fmt: skip
IDS = torch.arange(2, 12)[None]


def t5(**config) -> Checkpoint:
    torch.manual_seed(0)
    untied = config.pop("untied", False)
    model = build_model(T5Config(**T5 | config), "seq2seq_lm", untied_head=untied).eval()
    return Checkpoint(model, None, "seq2seq_lm")


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, untied, scaled, projection) -> None:
    """Tied or not, gated or not, outputs scaled or not: the same logits, the head as it was."""
    checkpoint = t5(untied=untied, feed_forward_proj=projection, tie_word_embeddings=scaled)
    checkpoint.masks = {"shared.weight": torch.rand(60, 16) > 0.5}
    checkpoint.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert torch.equal(logits(loaded.model), logits(checkpoint.model))
    assert has_untied_head(loaded.model) == untied
    assert torch.equal(loaded.masks["shared.weight"], checkpoint.masks["shared.weight"])
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(plain), logits(checkpoint.model))


def test_a_pickle_is_refused_and_runs_nothing(tmp_path) -> None:
    """A `.bin` that would run code when unpickled: one clear error, and nothing has run."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    checkpoint = t5()
    checkpoint.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(StageError):
        load_pretrained(tmp_path, "seq2seq_lm")
    assert not (tmp_path / "ran").exists()


def test_an_old_bin_of_tensors_loads(tmp_path) -> None:
    """Through `weights_only` loading."""
    checkpoint = t5()
    checkpoint.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(checkpoint.model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load_pretrained(tmp_path, "seq2seq_lm")), logits(checkpoint.model))


def test_a_file_that_does_not_fit_its_config_is_refused(tmp_path) -> None:
    """Two layers in the file, three in the config: transformers would make up the third."""
    t5().save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(StageError, match="missing tensors"):
        load_pretrained(tmp_path, "seq2seq_lm")
