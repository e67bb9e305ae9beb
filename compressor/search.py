"""How a recipe's search goes: how many trials, drawn by what, stopped when. Draws nothing."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from compressor.errors import nearest
from compressor.field_types import SETTINGS, Integer

SAMPLERS = ("gp", "nsga2", "random", "tpe")
"""Those of Optuna that are offered: they keep what they need as text, and draw the same again."""


class StopEarly(BaseModel):
    """When a trial is not worth going on with: its validation loss is worse than most had then.

    Each stage that trains is compared with the same stage of earlier trials, after each epoch; a
    trial's best epoch so far counts.

    Example: `stop_early: {after_trials: 5, after_epochs: 1, percentile: 50}`
    """

    model_config = SETTINGS

    after_trials: Integer = Field(
        5, ge=1, description="Trials that end a stage before any is stopped."
    )
    after_epochs: Integer = Field(
        1, ge=1, description="Epochs of a stage before it may be stopped."
    )
    percentile: float = Field(
        50, ge=0, le=100, description="Share of the trials, in %, that is good enough; 50: median."
    )


class Search(BaseModel):
    """A search for the best point instead of a grid of them, by `compressor run -m`.

    The space is what the command's overrides or `hydra.sweeper.params` leave open. Never part of a
    key.

    Example: `search: {trials: 30, sampler: tpe, stop_early: {after_trials: 5}}`
    """

    model_config = SETTINGS

    trials: Integer = Field(
        ge=1, description="In total, over all times that the search is continued."
    )
    sampler: str = Field(
        "tpe",
        description="What draws: tpe, gp, nsga2 or random.",
        json_schema_extra={"enum": list(SAMPLERS)},
    )
    seed: Integer = Field(
        0, ge=0, description="Of what is drawn; the stages have the recipe's seed."
    )
    at_once: Integer = Field(
        1, ge=1, description="Trials drawn, and given to the launcher, together."
    )
    random_trials: Integer = Field(
        10, ge=2, description="Before tpe and gp learn from trials; the population of nsga2."
    )
    stop_early: StopEarly | None = Field(None, description="When to stop a trial; default: never.")

    @field_validator("sampler")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SAMPLERS:
            raise ValueError(f"no such sampler; {nearest(value, SAMPLERS)}")
        return value
