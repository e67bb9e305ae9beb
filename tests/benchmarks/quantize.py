"""One product with a matrix of 2,048 × 512, in every kind that `quantize` writes, in turn.

    make bench NAME=quantize

Microseconds of the best of five rounds, on one thread, for 1, 4, 128 and 1,024 tokens.
"""

from __future__ import annotations

import timeit
from functools import partial

import torch
from torch import nn

from compressor.models.quantization import Activations, Quantization, Weights
from compressor.models.quantized_layers import quantize_weights, set_activations
from tests.benchmarks.common import write

ROWS, COLUMNS, TOKENS, ROUNDS = 2048, 512, (1, 4, 128, 1024), 5
KINDS: dict[str, tuple[Weights, Activations]] = {
    "int8, float": ("int8", "float"),
    "int8, int8": ("int8", "int8"),
    "int4, float": ("int4", "float"),
    "int4, bfloat16": ("int4", "bfloat16"),
}


def layers() -> dict[str, nn.Module]:
    """The same layer in float32 and in every kind."""
    kinds: dict[str, nn.Module] = {}
    for name in ("float32", "bfloat16", "float16", *KINDS):
        torch.manual_seed(0)
        holder = nn.ModuleDict({"layer": nn.Linear(COLUMNS, ROWS, bias=False)})
        if name in KINDS:
            weights, activations = KINDS[name]
            kind = "int4" if weights == "int4" else "int8"
            quantize_weights(holder, {"layer.weight": kind}, 32)
            set_activations(holder, Quantization(weights=weights, activations=activations))
        else:
            holder.to(getattr(torch, name))
        kinds[name] = holder["layer"]
    return kinds


@torch.inference_mode()
def main() -> None:
    """Measure every kind, and print them."""
    torch.set_num_threads(1)
    best: dict[tuple[str, int], float] = {}
    for _ in range(ROUNDS):
        for name, layer in layers().items():
            for tokens in TOKENS:
                dtype = getattr(torch, name) if name in ("bfloat16", "float16") else torch.float32
                x = torch.randn(tokens, COLUMNS).to(dtype)
                layer(x)
                number = max(1, 200 // tokens)  # as many as take a few milliseconds
                taken = timeit.timeit(partial(layer, x), number=number) / number
                best[name, tokens] = min(best.get((name, tokens), taken), taken)
    write(
        "quantize",
        shape=[ROWS, COLUMNS],
        unit="microseconds",
        tokens={
            name: {tokens: round(best[name, tokens] * 1e6) for tokens in TOKENS} for name, _ in best
        },
    )


if __name__ == "__main__":
    main()
