"""Find the model that a run ends with, and what is known of it. No text here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.core.files import expand_home
from compressor.engine.past_run import Record
from compressor.reports.run_page.results import Results

_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class Subject:
    """A run's last export, or else its last model."""

    results: Results
    record: Record

    @classmethod
    def of(cls, results: Results) -> Subject | None:
        """Find it; None where no stage has given a model."""
        records = results.of("export") or results.models
        return cls(results, records[-1]) if records else None

    @property
    def export_metrics(self) -> Mapping[str, Any]:
        """What its export measured; nothing where there is none."""
        metrics: Mapping[str, Any] = self.record["metrics"]
        return metrics if self.record["stage"] == "export" else {}

    @property
    def source(self) -> str:
        """The stage that gave the model; an export's is the one it exports."""
        return str(self.record["model"] if self.export_metrics else self.record["name"])

    @property
    def label(self) -> str:
        return self.results.label(self.source)

    @property
    def chain(self) -> list[Record]:
        """The stages it went through, from the first."""
        return [self.results.by_name[name] for name in self.results.chain(self.source)]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured of this very model; of an export's source where the values are its."""
        metrics = self.results.measurements.get(self.record["name"], {})
        if metrics or not self.export_metrics:
            return metrics
        # A quantized model may compute in integers, what is exported of it as float32 does not.
        quantized = any(record["stage"] == "quantize" for record in self.chain)
        same = self.export_metrics.get("weights") == "float32" and not quantized
        return self.results.measurements.get(self.source, {}) if same else {}

    @property
    def original(self) -> str:
        """The model that it is held to: itself, where its export alone was looked at."""
        original = self.results.original
        return self.source if original in (None, self.record["name"]) else str(original)

    @property
    def origin(self) -> str | None:
        """What its first stage loaded: a hub id or a path; None for fresh weights."""
        return self._load_settings.get("source")

    @property
    def head(self) -> str:
        """What stands on its body, such as `causal_lm`."""
        labelled = "sequence_classification" if self.results.has_labels else None
        if self.results.data.get("task") == "token_classification":
            labelled = "token_classification"
        return str(labelled or self._load_settings.get("head") or "seq2seq_lm")

    @property
    def _load_settings(self) -> Mapping[str, Any]:
        """The settings of its first stage."""
        recipe, chain = self.results.recipe, self.chain
        settings = ((recipe.get("stages") or {}).get(chain[0]["name"]) or {}) if chain else {}
        return {**(recipe.get("model") or {}), **settings}

    @property
    def base_model(self) -> str | None:
        """The hub id that it began as."""
        origin = self.origin
        if origin is None or not _HUB_ID.match(origin) or origin.startswith("."):
            return None
        return None if expand_home(origin).exists() else origin
