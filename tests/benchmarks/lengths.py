"""Six length limits: one sweep against `Seq2SeqTrainer.predict` once a limit; no quality, no GPU.

    make bench NAME=lengths

Fresh weights hardly ever give an end token, so all rows run to the limit: the worst case for us.
The second case is of rows that end at different steps. Both assert that the tokens are the same.
"""

from __future__ import annotations

import random
import tempfile
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from compressor.backends.beam_search import up_to_end
from compressor.backends.torch import generation
from tests.backends.test_generation import generated
from tests.benchmarks.common import compare, time_call, write
from tests.harness.models import decode_sweep, generate_rows

LIMITS = [20, 50, 64, 70, 100, 128]
PAD, EOS = 0, 1
Rows = list[list[int]]


def texts(count: int, vocabulary: int) -> Rows:
    """Random ids in the lengths of SciTLDR's abstracts (median 226 tokens, 5–95 %: 125–360)."""
    draw = random.Random(0)
    lengths = [min(512, round(226 * draw.lognormvariate(0, 0.33))) for _ in range(count)]
    return [[draw.randrange(2, vocabulary) for _ in range(n - 1)] + [EOS] for n in lengths]


def t5_small() -> T5ForConditionalGeneration:
    """T5-small's shape (transformers' defaults), fresh weights."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(decoder_start_token_id=PAD)).eval()


def tiny(end_scale: float) -> T5ForConditionalGeneration:
    """4+4 layers of 128, 2,000 words. The larger `end_scale`, the sooner rows give an end token;
    the penalty keeps fresh weights from repeating one token for ever.
    """
    torch.manual_seed(0)
    shape = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_heads": 4, "num_layers": 4}
    config = T5Config(
        vocab_size=2000, decoder_start_token_id=PAD, tie_word_embeddings=False,
        initializer_factor=2.0, **shape,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(2000, 128))
        model.lm_head.weight[EOS] *= end_scale
    model.generation_config.repetition_penalty = 1.3
    return model


def trainer(model: T5ForConditionalGeneration, folder: str) -> Seq2SeqTrainer:
    """Its defaults (batches of 8, in order), and its own collator, which pads to the batch.

    Without labels, or else it would also compute their loss, for a second run of the encoder; the
    collator's `labels: None` would count as labels.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": PAD, "</s>": EOS})), pad_token="<pad>"
    )
    pad = DataCollatorForSeq2Seq(tokenizer, model)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pad(rows).items() if value is not None}

    arguments = Seq2SeqTrainingArguments(
        folder, predict_with_generate=True, disable_tqdm=True, report_to="none"
    )
    return Seq2SeqTrainer(model=model, args=arguments, data_collator=collate)


def predict(model: T5ForConditionalGeneration, rows: Rows, limits: list[int]) -> dict[int, Rows]:
    """`Seq2SeqTrainer.predict`, once a limit."""
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        theirs = trainer(model, folder)
        arrays = {n: theirs.predict(data, max_length=n).predictions[:, 1:] for n in limits}
    return {
        limit: [up_to_end(row, [EOS]) for row in array[:, : limit - 1].tolist()]
        for limit, array in arrays.items()
    }


def measure_limits(count: int, repeats: int) -> dict[str, Any]:
    """The sweep, one decode at its longest limit, and their predictions, in turn."""
    model = t5_small()
    rows = texts(count, 32_000)
    generate_rows(model, rows[:2], max_length=5)
    predict(model, rows[:2], [5])
    pairs, ones = list[tuple[float, float]](), list[float]()
    for _ in range(repeats):
        ours, swept = time_call(lambda: decode_sweep(model, rows, max_lengths=LIMITS))
        one, _ = time_call(lambda: generate_rows(model, rows, max_length=max(LIMITS)))
        theirs, predicted = time_call(lambda: predict(model, rows, LIMITS))
        assert predicted == {limit: swept[limit].tokens for limit in LIMITS}
        pairs.append((ours, theirs))
        ones.append(one)
    return compare(*zip(*pairs, strict=True), "s") | {
        "one_decode": ones,
        # Of the best times: both are the same work, and few pairs do not average other load out.
        "sweep_over_one_decode": min(pair[0] for pair in pairs) / min(ones),
        "model": "T5-small's shape, fresh, float32",
        "rows": count,
        "cut_off": sum(swept[max(LIMITS)].cut_off) / count,
    }


def measure_ended_rows(count: int, repeats: int) -> dict[str, Any]:
    """Our loop and theirs on the very same batch, of rows that end at different steps."""
    model = tiny(end_scale=3.0)
    rows = [row[:64] for row in texts(count, 2000)]
    generate_rows(model, rows[:2], max_length=5)
    generation.BATCH_TOKENS = 10**9
    pairs = list[tuple[float, float]]()
    for _ in range(repeats):
        ours, decoded = time_call(lambda: generate_rows(model, rows, max_length=128))
        theirs, expected = time_call(lambda: generated(model, rows, 128))
        assert expected == decoded.tokens
        pairs.append((ours, theirs))
    return compare(*zip(*pairs, strict=True), "s") | {
        "model": "T5, 4+4 layers of 128, fresh, float32",
        "rows": count,
        "mean_length": decoded.generated / count,
        "cut_off": sum(decoded.cut_off) / count,
    }


def main() -> None:
    write("lengths", **measure_limits(48, 2), ended_rows=measure_ended_rows(96, 5))


if __name__ == "__main__":
    main()
