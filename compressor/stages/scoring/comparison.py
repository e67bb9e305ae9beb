"""Compare a model's scores with another one's. Scores nothing itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.evaluation.entities import SCORES as ENTITY_SCORES
from compressor.evaluation.labels import SCORES as LABEL_SCORES
from compressor.evaluation.metric_names import SCALES
from compressor.evaluation.rouge import METRIC_KEYS

_SCALES = {**dict.fromkeys((*METRIC_KEYS, *LABEL_SCORES, *ENTITY_SCORES), 1.0), **SCALES}
"""Scores that have a closeness → the best one, or the worst usual one."""


@dataclass(frozen=True)
class Comparison:
    """Which of a model's scores are compared with those of the model in `against`."""

    names: Sequence[str]
    main: str
    """The score whose retention and closeness tables show."""
    less_is_better: Collection[str] = ()

    def compare(self, scores: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
        """Compute retentions and closenesses; closeness is of scores divided by their scales."""
        from compressor.evaluation.rouge import compute_closeness, compute_retention

        pairs = {name: (scores[name], other[name]) for name in self.names}
        pairs = {name: pair for name, pair in pairs.items() if None not in pair}
        kept = {
            name: compute_retention(*(reversed(pair) if name in self.less_is_better else pair))
            for name, pair in pairs.items()
        }
        close = {
            name: compute_closeness(*(score / _SCALES[name] for score in pair))
            for name, pair in pairs.items()
            if name in _SCALES
        }
        compared: dict[str, Any] = {"retention": kept.get(self.main), "retentions": kept}
        if close:
            compared["closenesses"] = close
        if self.main in close:
            compared["closeness"] = close[self.main]
        return compared
