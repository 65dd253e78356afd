"""Search spaces: Hydra's grammar, `search.space`, the points of a grid and the questions of a sampler."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import le
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import FloatDistribution

from hfexp.commands.ranking import rank
from hfexp.core.compose import opened, spelling
from hfexp.core.config import SearchConfig
from hfexp.core.errors import ConfigError
from hfexp.core.training_args import build_arguments
from hfexp.sweep.request import metrics_and_directions
from hfexp.sweep.space import Space, read_space, unquoted
from hfexp.sweep.trials import State, Trial, TrialRun, best, estimate, ranked, ties
from hfexp.tracking.runs import RunRecord


class Recorder:
    """An Optuna trial that answers with the lowest value, and remembers what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.asked: dict[str, Any] = {}
        self.answers = answers

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked[name] = list(choices)
        return self.answers.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, **more: Any) -> int:
        self.asked[name] = ("int", low, high, more)
        return self.answers.get(name, low)

    def suggest_float(self, name: str, low: float, high: float, **more: Any) -> float:
        self.asked[name] = ("float", low, high, more)
        return self.answers.get(name, low)


def read(words: Sequence[str], nodes: Mapping[str, Any] | None = None) -> Space:
    return read_space(words, nodes or {}, OverridesParser.create(), seed=0)


def suggest(space: Space, **answers: Any) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
    """Words and parameters that come of the answers, and what was asked."""
    trial = Recorder(**answers)
    point = space.suggest(trial, lambda node, trial: {"lr": 0.1, "name": "a, b"})
    return point.overrides, point.params, trial.asked


@pytest.mark.parametrize(
    "words",
    [
        ["a=1,2", "b=x,y,z", "c=3"],
        ["a=range(1,5)", "b=range(0,1,0.25)", "++c.d=choice(1e-3,'x y',\"q\",true)"],
        ["a=[1,2],[3]", "b={x:1},{y:2}", "~c=1,2", "+d=\\,,2"],
        ["a='1,2'", "b=1,2", "a=3,4", "c@d=x,y", "e=sort(3,1,2)", "f=1"],
    ],
)
def test_a_grid_is_hydras_own(words: list[str]) -> None:
    ((*jobs,),) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    space = read(words)
    assert [list(space.job(point.overrides)) for point in space.grid()] == jobs


def test_values_that_are_the_same_are_one_point() -> None:
    assert [point.overrides for point in read(["a=1,1,2"]).grid()] == [("a=1",), ("a=2",)]


def test_a_shuffled_grid_has_one_order() -> None:
    orders = [[p.overrides for p in read(["a=shuffle(range(20))"]).grid()] for _ in range(2)]
    assert orders[0] == orders[1] != sorted(orders[0])


def test_what_optuna_is_told() -> None:
    space = read(["a=1,2.5", "b=x,1", "c=1,true", "d=range(3)", "e='q r',s"])
    assert [dimension.values for dimension in space.dimensions] == [
        (1, 2.5), ("x", "1"), ("1", "True"), (0, 1, 2), ("q r", "s"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "asked", "answer", "expected"),
    [
        ("a=interval(0,1)", ("float", 0.0, 1.0, {"step": None, "log": False}), 0.25, "a=0.25"),
        ("a=tag(log,interval(1e-5,1e-1))", ("float", 1e-5, 0.1, {"step": None, "log": True}), 1e-4, "a=0.0001"),
        ("a=int(interval(1,10))", ("int", 1, 10, {"step": 1, "log": False}), 10, "a=10"),
        ("a=tag(log,int(interval(1,64)))", ("int", 1, 64, {"log": True}), 8, "a=8"),
        ("a=range(1,5)", ("int", 1, 4, {"step": 1, "log": False}), 4, "a=4"),
        ("a=range(10,0,-2)", ("int", 2, 10, {"step": 2, "log": False}), 4, "a=4"),
        ("a=range(0,1,0.1)", ("float", 0.0, 0.9, {"step": 0.1, "log": False}), 0.30000000000000004, "a=0.3"),
        ("a=choice(x,y)", ["x", "y"], "y", "a=y"),
        ("a=sgd,adamw", ["sgd", "adamw"], "adamw", "a=adamw"),
    ],
)
def test_what_a_sampler_is_asked(word: str, asked: Any, answer: Any, expected: str) -> None:
    words, params, question = suggest(read([word]), a=answer)
    assert question == {"a": asked}
    assert params == {"a": answer}
    assert words == (expected,)


@pytest.mark.parametrize(
    "word",
    ["a=range(0,1,0.3)", "a=range(0.1,1,0.1)", "a=range(1,0,-0.1)", "a=range(0,0.3,0.1)",
     "a=sort(range(0.1,1,0.1),reverse=true)",
     "a=float(range(1,5))", "a=shuffle(range(0.05,0.5,0.05))"],
)  # fmt: skip
def test_a_sampler_can_choose_each_value_of_a_range(word: str) -> None:
    (dimension,) = read([word]).dimensions
    bounds = dimension.bounds
    assert bounds is not None
    assert bounds.step is not None
    asked = FloatDistribution(bounds.low, bounds.high, step=bounds.step)
    count = round((asked.high - asked.low) / bounds.step) + 1
    chosen = {dimension.override(asked.low + n * bounds.step) for n in range(count)}
    assert chosen == {f"a={spelled}" for spelled in dimension.spellings}


def test_a_space_in_yaml_and_the_command_line_wins() -> None:
    nodes = {"a": "tag(log, interval(1, 2))", "b": [1, "x y", True, "001", None], "c": 3, "d": "p,q"}
    space = read(["d=r", "e=1,2"], nodes)
    words, _, asked = suggest(space)
    assert set(asked) == {"a", "b", "c", "e"}
    assert asked["b"] == ["1", "'x y'", "True", "'001'", "null"]
    assert space.job(words) == ("d=r", "e=1", "a=1.0", "b=1", "c=3")


def test_keys_of_free_sections_are_opened() -> None:
    space = read_space([], {"trainer.args.learning_rate": [1, 2]}, OverridesParser.create(), 0, opened)
    assert space.grid()[0].overrides == ("++trainer.args.learning_rate=1",)
    assert space.grid()[0].params == {"trainer.args.learning_rate": 1}


CONDITIONAL = {
    "momentum": {"values": [0.9, 0.99], "when": {"optim": "sgd"}},
    "optim": ["adamw", "sgd", "lion"],
    "nesterov": {"values": [True, False], "when": {"momentum": 0.90}},
}


def test_a_conditional_grid_has_each_point_once() -> None:
    points = [" ".join(point.overrides) for point in read([], CONDITIONAL).grid()]
    assert points == [
        "optim=adamw", "optim=sgd momentum=0.9 nesterov=True", "optim=sgd momentum=0.9 nesterov=False",
        "optim=sgd momentum=0.99", "optim=lion",
    ]  # fmt: skip


def test_a_condition_on_a_value_that_the_command_line_leaves_out() -> None:
    points = [" ".join(point.overrides) for point in read(["optim=adamw,lion"], CONDITIONAL).grid()]
    assert points == ["optim=adamw", "optim=lion"]


def test_a_condition_on_a_value_that_has_to_be_escaped() -> None:
    nodes = {"a": ["x:y", "it's", "z"], "b": {"values": [1], "when": {"a": ["x:y", "it's"]}}}
    points = [point.params for point in read([], nodes).grid()]
    assert points == [{"a": "x:y", "b": 1}, {"a": "it's", "b": 1}, {"a": "z"}]


def test_a_sampler_is_asked_only_for_keys_that_exist() -> None:
    assert suggest(read([], CONDITIONAL))[0] == ("optim=adamw",)
    assert suggest(read([], CONDITIONAL), optim="sgd")[0] == ("optim=sgd", "momentum=0.9", "nesterov=True")


def test_a_function_of_the_users() -> None:
    words, params, _ = suggest(read(["a=1,2"], {"_target_": "mine.space", "most": 3}))
    assert words == ("a=1", "lr=0.1", "name='a, b'")
    assert params == {"a": 1, "lr": 0.1, "name": "a, b"}


@pytest.mark.parametrize(
    ("words", "nodes", "message"),
    [
        (["a=interval(0,1)"], {}, "a=interval(0,1): a grid needs a list of values; write a=choice(...) or range(...)"),
        (["a=interval(1,0)"], {}, "a: interval(1.0, 0.0) is empty"),
        (["a=tag(log,interval(0,1))"], {}, "a: a log scale must start above 0, got 0.0"),
        (["a=range(5,5)"], {}, "a=range(5,5) has no values"),
        (["search=tpe,gp"], {}, "search can't be swept"),
        (["search.seed=1,2"], {}, "search.seed can't be swept"),
        (["a=range(2000)", "b=range(2000)"], {}, "more than 1,000,000 points"),
        (
            [],
            {"a": {"value": [1]}},
            "search.space.a: a mapping needs `values` and may have `when`. Did you mean 'values'?",
        ),
        ([], {"a": None}, "search.space.a has no values"),
        ([], {"a": {"values": [1], "when": 3}}, "search.space.a.when must be a mapping"),
        (
            [],
            {"a": {"values": [1], "when": {"optin": 1}}, "optim": [1]},
            "names optin, which is not swept. Did you mean 'optim'?",
        ),
        (
            [],
            {"a": {"values": [1], "when": {"b": 1}}, "b": {"values": [1], "when": {"a": 1}}},
            "depend on each other: a, b",
        ),
        (
            ["optim=adamw_torch,sgd"],
            {"a": {"values": [1], "when": {"optim": ["sgd", "adamw_toch"]}}},
            "search.space.a.when: optim is never adamw_toch. Did you mean 'adamw_torch'? Its values: adamw_torch, sgd",
        ),
        (["++a=1,2", "b=1", "a=3,4"], {}, "a is swept twice, by ++a=1,2 and a=3,4"),
        ([], {"a": [1], "+a": [2]}, "a is swept twice, by a=1 and +a=2"),
        ([], {"_target_": "mine.space"}, "search.space._target_ needs a sampler"),
    ],
)
def test_what_is_refused(words: list[str], nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(words, nodes).grid()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "value", [1, 1.5, "a b", "null", "x", "1e3", None, True, [1, "b c"], {"k": "v w"}, "it's", "", "café", ["ß", "日"]]
)
def test_spelling_is_read_back(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={spelling(value)}"])
    assert override.value() == value


def test_a_tuple_is_a_list() -> None:
    assert spelling((1, ("a b", "ü"))) == "[1,['a b','ü']]"


def test_comparisons_of_values() -> None:
    assert unquoted("a='x y'") == "x y"
    assert unquoted("a=1.0") == unquoted("a=1") == unquoted("a=1e0")
    assert unquoted("a=True") == unquoted("a=true")


def test_each_value_is_tried_before_a_sweep() -> None:
    space = read(["a=1,2", "b=x,y", "c=interval(0,1)", "d=1,2"])
    first = ("a=1", "b=x", "c=0.0", "d=1")
    found = space.samples({"a", "b", "c"}, 9)
    assert found == [first, ("a=2", *first[1:]), ("a=1", "b=y", *first[2:])]
    assert space.samples() == [first]


def goal(metric: str | None = None, *asked: str, **args: Any) -> tuple[list[str], list[str]]:
    """What a sweep optimises whose best model is chosen by a metric."""
    config = {"trainer": {"args": {"metric_for_best_model": metric, **args}}, "task": {"_target_": "x"}}
    return metrics_and_directions(SearchConfig(metrics=list(asked)), [config])


@pytest.mark.parametrize("name", ["mse", "eval_wer", "cer", "eval_loss", "brier", "my_error", "rmse"])
def test_errors_are_minimised_everywhere(name: str, tmp_path: Path) -> None:
    assert goal(name)[1] == ["minimize"]
    assert goal("accuracy", name) == ([name], ["minimize"])
    assert goal("accuracy", f"test_{name.removeprefix('eval_')}")[1] == ["minimize"]
    runs = [RunRecord(str(n), "", "", "", "", 0, 0, metrics={name: float(n)}) for n in (2, 1)]
    assert [run.run_id for run in rank(runs, name).runs] == ["1", "2"]
    made = build_arguments(
        {"metric_for_best_model": name}, output_dir=tmp_path, seed=1, run_name="r", metric="accuracy",
        greater_is_better=True, deterministic=False,
    )  # fmt: skip
    assert made.greater_is_better is False


@pytest.mark.parametrize("name", ["accuracy", "top5_accuracy", "eval_f1_macro", "roc_auc", "r2", "exact_match"])
def test_scores_are_maximised(name: str) -> None:
    assert goal(name)[1] == goal("loss", name)[1] == ["maximize"]


def test_a_metric_whose_name_does_not_tell_its_direction(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minimize or maximize eval_answer.* trainer\.args\.greater_is_better"):
        goal("answer")
    with pytest.raises(ConfigError, match=r"minimize or maximize power, e\.g\. search\.directions=\[maximize\]"):
        goal("loss", "power")
    assert goal("answer", greater_is_better=False)[1] == ["minimize"]
    made = build_arguments(
        {"metric_for_best_model": "answer"}, output_dir=tmp_path, seed=1, run_name="r", metric="loss",
        greater_is_better=False, deterministic=False,
    )  # fmt: skip
    assert made.greater_is_better is True


def test_an_interval_of_a_mean() -> None:
    """Student's t with 4 degrees of freedom: 2.776 (any table)."""
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.deviation == pytest.approx(1.5811388)
    assert found.interval == pytest.approx((3 - 2.7764451 * 0.70710678, 3 + 2.7764451 * 0.70710678))
    assert found.objective("maximize", bound=True) == pytest.approx(found.interval[0] if found.interval else None)
    assert found.objective("maximize") == 3
    assert estimate([7.0]).interval is None
    assert estimate([7.0]).objective("minimize", bound=True) == 7


def trial(number: int, *values: float) -> Trial:
    return Trial(number, {}, (), State.finished, values=values)


def replicated(number: int, *values: float) -> Trial:
    """A trial of one metric, with these values by seed."""
    runs = tuple(TrialRun(seed, State.finished, values=(value,)) for seed, value in enumerate(values))
    told = estimate(values).objective("maximize")
    return Trial(number, {}, (), State.finished, values=(estimate(values).mean,), runs=runs, objective=(told,))


@pytest.mark.parametrize(
    "values",
    [
        [1.0, math.inf],
        [1.7e308, 1.7e308, 1e160],
        [1.7e308, -1.7e308],
        [1e200, 2e200],
        [math.inf, -math.inf],
        [math.inf, math.inf],
    ],
)
@pytest.mark.parametrize(("direction", "worst"), [("minimize", math.inf), ("maximize", -math.inf)])
def test_values_that_are_infinitely_far_apart_come_last(values: list[float], direction: str, worst: float) -> None:
    found = estimate(values)
    assert found.deviation is not None
    assert found.interval is not None
    assert {found.objective(direction), found.objective(direction, bound=True)} == {worst}
    far = replace(replicated(0, *values), objective=(found.objective(direction),))
    others = [replicated(1, 5.0, 5.1), replicated(2, 5.0, 5.1)]
    assert [t.number for t in ranked([far, *others], [direction])] == [1, 2, 0]
    assert ties([far, *others], [direction]) == {2}
    assert ties([far], [direction]) == set()


def test_a_mean_that_a_sum_would_not_reach() -> None:
    assert estimate([1.5e308, 1.5e308]).mean == 1.5e308


def test_ranks_and_ties() -> None:
    """Seeds differ by more than points do: all intervals overlap, and trial 2 is worse with every seed."""
    seeds = (0.80, 0.84, 0.78, 0.88, 0.82)
    trials = [
        replicated(0, *(value - 0.02 for value in seeds)),
        replicated(1, *seeds),
        replicated(2, *(value - 0.03 - 0.001 * n for n, value in enumerate(seeds))),
        replicated(3, *(value - change for value, change in zip(seeds, (0.1, 0.0, -0.05, 0.0, 0.0), strict=True))),
        Trial(4, {}, (), State.failed),
    ]
    assert [t.number for t in ranked(trials, ["maximize"])] == [1, 3, 0, 2]
    assert [t.number for t in best(trials, ["minimize"])] == [2]
    assert ties(trials, ["maximize"]) == {3}
    assert ties([replicated(0, 1.0), replicated(1, 1.0)], ["maximize"]) == set()  # one seed tells nothing
    assert ties([replicated(0, 1.0, 1.0), replicated(1, 1.0, 1.0)], ["maximize"]) == {1}


def test_points_that_no_other_is_better_than_among_many() -> None:
    numbers = random.Random(1)
    trials = [trial(n, *(float(numbers.randrange(12)) for _ in range(3))) for n in range(80)]
    rows = [t.values or () for t in trials]
    expected = {n for n, own in enumerate(rows) if not any(v != own and all(map(le, v, own)) for v in rows)}
    assert {t.number for t in best(trials, ["minimize"] * 3)} == expected


def test_points_that_no_other_is_better_than() -> None:
    trials = [trial(0, 1, 1), trial(1, 2, 3), trial(2, 3, 2), trial(3, 3, 3)]
    assert [t.number for t in best(trials, ["maximize", "minimize"])] == [2, 0]
    assert [t.number for t in ranked(trials, ["maximize", "minimize"])] == [2, 0, 3, 1]


def test_words_that_others_wrote_into_a_storage_are_no_words_of_the_sweep() -> None:
    space = read(["seed=1,2", "++trainer.args.learning_rate=interval(0.1,1)"])
    assert space.job(["seed=2", "++trainer.args.learning_rate=0.5"])[-2:] == (
        "seed=2", "++trainer.args.learning_rate=0.5",
    )  # fmt: skip
    for word in ("seed=3", "++trainer.args.learning_rate=${oc.env:HOME}", "dataset.source._target_=own.run", "~seed"):
        with pytest.raises(ConfigError, match="is not a value of this sweep"):
            space.job([word])
