"""What one process left beside what two left: rounding passes, anything else is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from compressor.rehearsal.comparison import ROUNDING, compare

FLOAT32 = ROUNDING["float32"]


def left(folder: Path, weight: Tensor, loss: float = 2.5, text: str = "same") -> Path:
    folder.mkdir()
    save_file({"w": weight}, folder / "model.safetensors")
    (folder / "losses.csv").write_text(f"step,loss\n1,{loss!r}\n")
    (folder / "predictions.csv").write_text(f"{text}\n")
    return folder


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    """A millionth of an update, and of a loss; a metric that is a time may be any."""
    old = torch.ones(8)
    before = left(tmp_path / "before", old)
    one = left(tmp_path / "one", old + 0.1)
    two = left(tmp_path / "two", old + 0.1 * (1 + 1e-6), loss=2.5 * (1 + 1e-6))
    metrics = ({"seconds": 1.0, "loss": 2.5}, {"seconds": 9.0, "loss": 2.5000001})
    found = compare(one, two, before, metrics, FLOAT32)
    assert found.wrong == ""
    assert found.files == ("losses.csv", "model.safetensors", "predictions.csv")


@pytest.mark.parametrize(
    ("weight", "loss", "text", "metric", "said"),
    [
        (0.11, 2.5, "same", 2.5, "model.safetensors: what two processes changed differs by 0.1"),
        (0.1, 2.6, "same", 2.5, "losses.csv: 2.5 in one process is 2.6 in two"),
        (0.1, 2.5, "other", 2.5, "predictions.csv: the texts differ"),
        (0.1, 2.5, "same", 2.6, "loss is 2.5 in one process and 2.6 in two"),
    ],
)
def test_a_difference_is_named(
    tmp_path: Path, weight: float, loss: float, text: str, metric: float, said: str
) -> None:
    """Weights are compared by what changed in them: a tenth of an update, in a weight that moved by
    a tenth of itself, is a hundredth of the weight.
    """
    old = torch.ones(8)
    before = left(tmp_path / "before", old)
    one = left(tmp_path / "one", old + 0.1)
    two = left(tmp_path / "two", old + weight, loss, text)
    found = compare(one, two, before, ({"loss": 2.5}, {"loss": metric}), FLOAT32)
    assert found.wrong.startswith(said)


def test_a_file_that_only_one_wrote_is_named(tmp_path: Path) -> None:
    one, two = left(tmp_path / "one", torch.ones(2)), left(tmp_path / "two", torch.ones(2))
    (two / "more.txt").write_text("")
    found = compare(one, two, None, ({}, {}), FLOAT32)
    assert found.wrong == "only one of the two wrote more.txt"


def test_one_tensor_that_went_another_way_is_named(tmp_path: Path) -> None:
    """Four entries among a million that moved as much are hardly a part of the whole; a tensor that
    moved by rounding alone may go any way.
    """
    start = {"large": torch.zeros(1000, 1000), "norm": torch.zeros(4), "bias": torch.zeros(4)}
    moved = {"large": torch.full((1000, 1000), 0.1), "norm": torch.full((4,), 0.1)}
    folders = [tmp_path / name for name in ("before", "one", "two", "three")]
    for folder, tensors in zip(
        folders,
        (
            start,
            moved | {"bias": torch.full((4,), 1e-9)},
            moved | {"bias": torch.full((4,), -1e-9)},
            moved | {"bias": torch.full((4,), 1e-9), "norm": torch.full((4,), -0.1)},
        ),
        strict=True,
    ):
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
    before, one, two, three = folders
    assert compare(one, two, before, ({}, {}), FLOAT32).wrong == ""
    found = compare(one, three, before, ({}, {}), FLOAT32)
    assert found.wrong.startswith(
        "model.safetensors: norm: what two processes changed differs by 2"
    )
