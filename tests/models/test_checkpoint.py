"""Checkpoints: what is saved is what comes back; layers leave a model and the rest is as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BertConfig, T5Config

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model, has_untied_head, load_pretrained
from compressor.models.surgery import keep_layers

T5 = {
    "vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4,
    "num_layers": 6, "num_decoder_layers": 6, "decoder_start_token_id": 0,
}  # fmt: skip
IDS = torch.arange(2, 12)[None]


def t5(**config) -> Checkpoint:
    torch.manual_seed(0)
    untied = config.pop("untied", False)
    model = build_model(T5Config(**T5 | config), "seq2seq_lm", untied_head=untied).eval()
    return Checkpoint(model, None, "seq2seq_lm")


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            return model(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits
        return model(input_ids=IDS).last_hidden_state


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


def test_masking_a_tied_head_masks_the_embedding(tmp_path) -> None:
    """They are one tensor: what is evaluated is what is saved (torch's `prune` breaks this)."""
    checkpoint = t5()
    mask = torch.rand(60, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    checkpoint.masks = {"shared.weight": mask}
    checkpoint.apply_masks()
    assert torch.count_nonzero(checkpoint.model.lm_head.weight[~mask]) == 0
    checkpoint.save(tmp_path)
    loaded = Checkpoint.load(tmp_path).model
    assert torch.equal(loaded.shared.weight, checkpoint.model.shared.weight)
    assert torch.equal(loaded.lm_head.weight, checkpoint.model.lm_head.weight)


@pytest.mark.parametrize("keep", range(1, 7))
def test_every_count_of_layers_is_right(tmp_path, keep) -> None:
    """Not only halves (a known trap): layers that add nothing leave without changing a logit."""
    checkpoint = t5()
    kept = sorted(torch.randperm(6, generator=torch.Generator().manual_seed(keep))[:keep].tolist())
    with torch.no_grad():
        for stack in (checkpoint.model.encoder, checkpoint.model.decoder):
            for index, block in enumerate(stack.block):
                if index not in kept:
                    for name, parameter in block.named_parameters():
                        if name.endswith((".o.weight", ".wo.weight")):
                            parameter.zero_()
    smaller = keep_layers(checkpoint, {"encoder": kept, "decoder": kept})
    assert smaller.model.config.num_layers == smaller.model.config.num_decoder_layers == keep
    expected = logits(checkpoint.model)
    torch.testing.assert_close(logits(smaller.model), expected, atol=1e-5, rtol=0)
    numbers = [block.layer[0].SelfAttention.layer_idx for block in smaller.model.decoder.block]
    assert numbers == list(range(keep))
    greedy = smaller.model.generate(IDS, max_length=12, do_sample=False)
    slow = smaller.model.generate(IDS, max_length=12, do_sample=False, use_cache=False)
    assert torch.equal(greedy, slow)


def test_dropping_the_first_layer_keeps_its_position_bias() -> None:
    """T5 has the relative-position bias in block 0 alone; the block that comes first takes it."""
    checkpoint = t5()
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    smaller = keep_layers(checkpoint, {"encoder": [2, 5]})
    assert torch.equal(smaller.model.state_dict()[name], checkpoint.model.state_dict()[name])
    query = "layer.0.SelfAttention.q.weight"
    assert torch.equal(
        smaller.model.state_dict()[f"encoder.block.0.{query}"],
        checkpoint.model.state_dict()[f"encoder.block.2.{query}"],
    )
    assert len(smaller.model.decoder.block) == 6


def test_an_untied_head_survives_shrinking() -> None:
    """Transformers 5 builds every T5 tied; copying into such a model would lose the head."""
    checkpoint = t5(untied=True)
    smaller = keep_layers(checkpoint, {"decoder": [0]})
    assert has_untied_head(smaller.model)
    assert torch.equal(smaller.model.lm_head.weight, checkpoint.model.lm_head.weight)


def test_masks_follow_their_layers() -> None:
    """A kept layer's mask is renumbered with it; a dropped layer's goes."""
    checkpoint = t5()
    names = [f"decoder.block.{i}.layer.2.DenseReluDense.wo.weight" for i in range(6)]
    checkpoint.masks = {name: torch.full((16, 32), i % 2 == 0) for i, name in enumerate(names)}
    smaller = keep_layers(checkpoint, {"decoder": [1, 4]})
    assert [bool(smaller.masks[name][0, 0]) for name in names[:2]] == [False, True]
    assert len(smaller.masks) == 2


def test_bert_shrinks_too() -> None:
    """Its one stack, with all parameters of the kept layers."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = build_model(config, "none").eval()
    with torch.no_grad():
        whole = model(input_ids=IDS, output_hidden_states=True).hidden_states
    smaller = keep_layers(Checkpoint(model, None, "none"), {"encoder": [0, 1]})
    torch.testing.assert_close(logits(smaller.model), whole[2])


def test_a_pickle_is_refused_and_runs_nothing(tmp_path) -> None:
    """A `.bin` that would run code when unpickled: one clear error, and nothing has run."""
    import os
    import pickle

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
    t5(num_layers=2).save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(StageError, match="missing tensors"):
        load_pretrained(tmp_path, "seq2seq_lm")


def test_a_shrunk_model_reloads_in_a_fresh_process_with_its_logits(tmp_path) -> None:
    """Nothing that a module remembered was needed."""
    smaller = keep_layers(t5(), {"encoder": [0, 3], "decoder": [5]})
    smaller.save(tmp_path)
    torch.save(logits(smaller.model), tmp_path / "expected.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForSeq2SeqLM as A; "
        "m = A.from_pretrained(sys.argv[1]).eval(); ids = torch.arange(2, 12)[None]; "
        "e = torch.load(sys.argv[1] + '/expected.pt'); "
        "print(float((m(input_ids=ids, decoder_input_ids=ids[:, :5]).logits - e).abs().max()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 1e-6
