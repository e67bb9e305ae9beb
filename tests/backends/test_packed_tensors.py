"""One tensor, packed and unpacked: the bits by hand, the rounding, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from compressor.backends import packed
from compressor.backends.packed import Values, pack_tensor
from compressor.models.quantized_layers import dequantize_rows, quantize_rows
from compressor.stages import prune

ROUNDED = {
    "float32": lambda weight: weight,
    "bfloat16": lambda weight: weight.bfloat16().float(),
    "int8": lambda weight: dequantize_rows(*quantize_rows(weight)),
}


def sparse(rows: int, columns: int, density: float) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(rows, columns) * (torch.rand(rows, columns) < density)


def test_bits_and_values_are_in_the_order_of_the_rows() -> None:
    """The first entry is the highest bit of the first byte; a last byte is filled with zeros."""
    packed = pack_tensor(
        torch.tensor([[0.0, 2.0, 0.0, -4.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]), "int8"
    )
    assert packed.mask is not None
    assert packed.mask.tolist() == [0b01010000, 0b01000000]
    assert packed.values.tolist() == [2.0, -4.0, 1.0]
    assert (packed.mask_bytes, packed.value_bytes) == (2, 12)


@pytest.mark.parametrize("values", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(32, 32), (41, 37), (1, 1500), (3, 5)])
def test_what_comes_back_is_the_rounded_tensor(
    values: Values, density: float, shape: tuple[int, int]
) -> None:
    """Exactly the rule's values: nothing lost in float32, small matrices never rounded."""
    weight = sparse(*shape, density)
    rounded = ROUNDED[values](weight) if weight.numel() >= 1024 else weight
    packed = pack_tensor(weight, values)
    assert torch.equal(packed.unpack(), rounded)
    dense = weight.numel() * packed.values.element_size()
    scales = 4 * shape[0] if packed.scale is not None else 0
    assert packed.mask_bytes + packed.value_bytes <= dense + scales
    assert (packed.mask is None) == (dense + scales == packed.value_bytes)


def test_vectors_stay_float32_and_integers_what_they_are() -> None:
    """Norms and biases are not rounded, nor are buffers of whole numbers turned to float."""
    vector, numbers = torch.randn(5000), torch.arange(2000)[None]
    assert torch.equal(pack_tensor(vector, "int8").unpack(), vector)
    assert pack_tensor(vector, "bfloat16").values.dtype == torch.float32
    assert torch.equal(pack_tensor(numbers, "int8").unpack(), numbers)


@pytest.mark.parametrize(
    ("bad", "values", "message"),
    [
        (float("nan"), "int8", "not finite"),
        (float("inf"), "bfloat16", "not finite"),
        (3.4e38, "bfloat16", "too large for bfloat16"),  # which is infinity there
    ],
)
def test_what_is_rounded_is_finite(bad: float, values: Values, message: str) -> None:
    """One infinite entry would make a whole row of int8 nonsense; float32 is kept as it is."""
    weight = sparse(40, 40, 0.5)
    weight[3, 3] = bad
    with pytest.raises(ValueError, match=message):
        pack_tensor(weight, values)
    torch.testing.assert_close(
        pack_tensor(weight, "float32").unpack(), weight, rtol=0, atol=0, equal_nan=True
    )


def test_planning_knows_what_is_packed_as_it_is() -> None:
    """A target in bytes counts small matrices without importing what packs them."""
    assert prune.SMALL == packed.SMALL
