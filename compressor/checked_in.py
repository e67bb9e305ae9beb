"""Where the recipes and the Accelerate configs that come with the package are."""

from __future__ import annotations

from pathlib import Path


def recipes_folder() -> Path:
    """The checked-in recipes: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def accelerate_configs() -> dict[str, Path]:
    """Name → file of the checked-in Accelerate configs."""
    return {path.stem: path for path in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}
