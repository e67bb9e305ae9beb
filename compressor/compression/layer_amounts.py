"""Choose how much each layer loses, by how much the loss is predicted to grow. Prunes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, factorize
from compressor.compression.importance import linear_modules
from compressor.compression.pruning import TOO_LARGE, as_rows
from compressor.compression.reconstruction import add_affine_products
from compressor.compression.sparsegpt import BLOCK, Curvature
from compressor.compression.structured import sum_output_gradients
from compressor.compression.thresholds import prune_smallest

MOST_APART = 0.15
"""How far the share that a layer loses may be from the mean. A real T5 of 77 M at 0.5 non-zero, by
32 training rows and before any recovery: the validation loss, 2.63 before, is 2.92 with it, 2.96
without, and 3.04 with one share for all layers (40 rows of SciTLDR). At 0.3 non-zero it is 5.11,
5.84 and 7.24."""
INFINITE = 0x7F800000
"""The bits of a float32 that is infinite."""
SMOOTHING = 0.1
"""Share of the mean that is added to what outputs matter: a word that no calibration row has, as
others of its kind, may come."""


@dataclass(frozen=True)
class LayerAmount:
    """What a layer loses, and what its outputs matter."""

    blocks: list[int]
    """How many more entries go in each block of `sparsegpt.BLOCK` columns."""
    gradients: Tensor
    """The squared gradient of each output, summed over the calibration tokens: [outputs]."""

    @property
    def count(self) -> int:
        """How many entries go."""
        return sum(self.blocks)


def predict_growth(weight: Tensor, curvature: Curvature, scale: float, gradients: Tensor) -> Tensor:
    """Predict how much the loss grows without each entry alone: the square root of twice that.

    weight: [outputs, inputs]. An entry w_ij that goes, while those to its right make up for it,
    costs output i `(w_ij / c_j)²` (optimal brain surgeon), c being the diagonal of the factor of
    the Hessian, of which `scale` is the mean diagonal for each token. To the loss that matters as
    much as the squared gradients of that output, `gradients` [outputs], summed over tokens: their
    product is the diagonal of K-FAC (arXiv 1503.05671).
    """
    score = weight.detach().float() / curvature.factor.diagonal()
    return score.abs_().mul_(curvature.active).mul_((gradients * scale).sqrt()[:, None])


def choose_layer_amounts(
    calibration: Calibration, names: Iterable[str], count: int
) -> dict[str, LayerAmount]:
    """Choose how many more entries each of these weights loses, `count` together.

    As many as it has of the entries whose absence costs the loss least, compared over all layers:
    the predicted loss of each is a convex curve, and what goes next is cheapest everywhere. But no
    layer loses a share that is further than `MOST_APART` from the mean: the prediction adds up
    what each layer does alone, and says too little where one loses nearly all (as Outlier Weighed
    Layerwise sparsity bounds them, arXiv 2310.05175).
    """
    checkpoint = calibration.checkpoint
    weights = {name: checkpoint.get_parameter(name) for name in names}
    modules = linear_modules(checkpoint.model, weights)
    gradients = sum_output_gradients(calibration, modules)
    gradients = {name: g + SMOOTHING * g.mean() for name, g in gradients.items()}
    scores = dict[str, Tensor]()
    for shared, products in calibration.sum_by_layer(modules, add_affine_products, "dense"):
        tokens, hessian = float(products[-1, -1]), products[:-1, :-1].contiguous()
        active = hessian.diagonal()[hessian.diagonal() != 0]
        scale = float(active.double().mean()) / tokens if len(active) else 0.0
        curvature = factorize(next(iter(shared)), hessian, TOO_LARGE)
        for name, module in shared.items():
            weight = as_rows(weights[name], module)
            scores[name] = predict_growth(weight, curvature, scale, gradients[name])
    masks = {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    for name in masks.keys() & checkpoint.masks.keys():
        masks[name].copy_(as_rows(checkpoint.masks[name], modules[name]))
        scores[name].mul_(masks[name])
    counts = bound_counts(scores, masks, count)
    amounts = {}
    for name, mask in masks.items():
        before = _count_blocks(mask)
        prune_smallest({"": scores.pop(name)}, alone := {"": mask}, counts[name])
        after = _count_blocks(alone[""])
        blocks = [had - left for had, left in zip(before, after, strict=True)]
        amounts[name] = LayerAmount(blocks, gradients[name])
    return amounts


def bound_counts(
    scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], count: int
) -> dict[str, int]:
    """Count the entries of smallest score, `count` together, of each layer, within `MOST_APART`.

    scores: float32, at least 0. masks: bool, False where an entry has gone; its score is 0.
    """
    left = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    share = count / max(1, sum(left.values()))
    least = {name: math.floor(max(0.0, share - MOST_APART) * n) for name, n in left.items()}
    most = {name: math.ceil(min(1.0, share + MOST_APART) * n) for name, n in left.items()}

    def count_below(bits: int) -> dict[str, int]:
        threshold = torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
        below = {name: int((score < threshold).count_nonzero()) for name, score in scores.items()}
        went = {name: n - masks[name].numel() + left[name] for name, n in below.items()}
        return {name: min(max(n, least[name]), most[name]) for name, n in went.items()}

    # Bits of floats that are not negative order as they do: the last at which no more go.
    low, high = 0, INFINITE
    while high - low > 1:
        middle = (low + high) // 2
        enough = sum(count_below(middle).values()) > count
        low, high = (low, middle) if enough else (middle, high)
    counts = count_below(low)
    rest = count - sum(counts.values())
    for name in counts:  # those whose scores equal the threshold
        moved = min(rest, most[name] - counts[name])
        counts[name] += moved
        rest -= moved
    return counts


def _count_blocks(mask: Tensor) -> list[int]:
    return [int(part.count_nonzero()) for part in torch.split(mask, BLOCK, dim=1)]
