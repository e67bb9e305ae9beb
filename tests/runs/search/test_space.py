"""The space of a search: what its grammar says, and what is told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from compressor.cli.main import main
from compressor.core.errors import RecipeError
from compressor.runs.search.plan import plan_search
from compressor.runs.search.space import read_space
from tests.runs.search.conftest import HEAD, with_search


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(0.1,0.9)", FloatDistribution(0.1, 0.9)),
        ("a=interval(1,9)", FloatDistribution(1.0, 9.0)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("a=range(1,9)", IntDistribution(1, 8)),
        ("a=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("a=range(9,1,-3)", IntDistribution(3, 9, step=3)),
        ("a=range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("a=choice(1,2,4)", CategoricalDistribution(["1", "2", "4"])),
        ("a=x,'y z',null", CategoricalDistribution(["x", "'y z'", "null"])),
        ("a=true,false", CategoricalDistribution(["True", "False"])),
        ("a=[load,prune],[load]", CategoricalDistribution(["[load,prune]", "[load]"])),
    ],
)
def test_a_space_is_what_hydras_grammar_says(override: str, expected) -> None:
    """Each form of Hydra's grammar is drawn from the distribution that it names; ranges end before
    their stop, as in a grid.
    """
    (dimension,) = read_space(["b=1", override]).dimensions
    assert dimension.make_distribution() == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=tag(lgo,interval(1,2))", "no tag 'lgo'; did you mean 'log'?"),
        ("a=tag(log,interval(0,1))", "begins above 0"),
        ("a=tag(log,choice(1,2))", "choices have no scale"),
        ("a=tag(log,range(1,9,2))", "no log scale"),
        ("a=interval(2,1)", "expected a lower end and a higher one, got 2 and 1"),
        ("a=range(2,2)", "is empty"),
        ("a=glob(*)", "name each value"),
        ("search.trials=1,2", "is the same for a whole search"),
        ("b=1", "nothing to search over"),
    ],
)
def test_a_space_that_cannot_be_drawn_from_is_refused(override: str, message: str) -> None:
    """What is wrong with a space is told with the key and the nearest valid way."""
    with pytest.raises(RecipeError, match=r".") as error:
        read_space([override])
    assert message in str(error.value)
    assert override.partition("=")[0] in str(error.value) or override == "b=1"


def test_drawn_values_become_overrides_that_say_them_exactly() -> None:
    """A float is written with all its digits, a step without what adding up leaves, a choice as
    it was given.
    """
    space = read_space(["x=1", "a=interval(0,1)", "b=range(0.1,0.8,0.1)", "+c@d=u,'v w'"])
    third = 1 / 3
    values = space.write({"a": third, "b": 0.1 + 0.1 + 0.1, "c": "'v w'"})
    assert space.at(values) == ("x=1", f"a={third!r}", "b=0.3", "+c@d='v w'")
    assert space.middle == {"a": "0.5", "b": "0.4", "c": "u"}
    log = read_space(["a=tag(log,interval(1e-4,1e-2))"])
    assert float(log.middle["a"]) == pytest.approx(1e-3)


def test_both_ends_and_every_choice_are_planned_first(recipe: Callable[..., Path]) -> None:
    """A value that a stage would refuse is told before the first trial, each one, at once."""
    path = with_search(recipe, "search: {trials: 3}\nobjective: {minimize: prune.nonzero_ratio}\n")
    overrides = [f"{HEAD}=interval(0.5,1.5)", "stages.prune.importance=magnitude,magnitud,wando"]
    with pytest.raises(RecipeError) as error:
        plan_search(str(path), overrides, reachable=True)
    told = str(error.value)
    assert "1.5" in told and "magnitud" in told and "wando" in told
    assert not (path.parent / "outputs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {trials: 3}\n", "needs an objective"),
        ("search: {trials: 3, sampler: tpf}\n", "did you mean 'tpe'?"),
        ("search: {trails: 3}\n", "did you mean 'trials'?"),
        ("search: {trials: 3}\nobjective: {minimize: prun.bytes}\n", "did you mean 'prune'?"),
    ],
)
def test_a_search_that_cannot_work_is_refused(recipe, text: str, message: str) -> None:
    """A search needs an objective, and its own keys are checked as any others."""
    path = with_search(recipe, text)
    with pytest.raises(RecipeError) as error:
        plan_search(str(path), [f"{HEAD}=interval(0.1,0.9)"], reachable=True)
    assert message in str(error.value)


def test_plan_says_the_space_and_what_trials_share(recipe, capsys, monkeypatch) -> None:
    """`plan -m` tells the space, the trials and what is shared; an interval in a grid, and Optuna
    where it is missing, are told with what to do.
    """
    text = "search: {trials: 7, at_once: 2}\nobjective: {minimize: prune.nonzero_ratio}\n"
    path = str(with_search(recipe, text))
    monkeypatch.chdir(Path(path).parent)
    overrides = (f"{HEAD}=tag(log,interval(0.1,0.9))", "stages.prune.importance=magnitude,random")
    assert main(["plan", path, "-m", *overrides]) == 0
    out = capsys.readouterr().out
    for line in (
        "0.1 … 0.9, log scale",
        "magnitude, random",
        "7 trials by tpe, 2 at once: minimize prune.nonzero_ratio",
        "shared by all trials: load",
        "in each trial: prune",
    ):
        assert line in out
    assert main(["plan", path, "-m", overrides[0], "search=null"]) == 2
    assert "give the recipe a `search`" in capsys.readouterr().err
    monkeypatch.setattr("compressor.runs.search.plan.find_spec", lambda name: None)
    assert main(["run", path, "-m", *overrides]) == 2
    assert "pip install 'optuna>=5.0'" in capsys.readouterr().err
