import io
import math

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_methods_sample_order_invariance,
    check_methods_subset_invariance,
    parametrize_with_checks,
)

import pathline as pl
from pathline.estimator import FlowMatcher

TINY = {"steps": 2, "width": 8, "depth": 2, "batch_size": 32, "device": "cpu"}
SMALL = {"steps": 200, "width": 32, "depth": 2, "batch_size": 256, "device": "cpu"}

_NEEDS_Y = "fits on y, then scores without it: a conditional density has no value without its condition"
EXPECTED = {
    "check_methods_sample_order_invariance": _NEEDS_Y,
    "check_methods_subset_invariance": _NEEDS_Y,
}


class Unconditional(FlowMatcher):
    """Takes the y that scikit-learn's checks hand to every estimator for what it is in a plain density: nothing."""

    def fit(self, X, y=None):
        return super().fit(X)


def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "price": np.exp(rng.normal(size=n)),
            "count": rng.integers(0, 9, n),
            "ok": rng.random(n) < 0.5,
            "grade": pd.array(rng.integers(1, 4, n), dtype="Int64"),
            "size": rng.normal(5, 2, n).astype(np.float32),
            "year": np.full(n, 2024),
            "rate": np.full(n, 0.25),
        }
    )


def gaussian(n=300, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 2))


def two_groups(n=1000):
    rng = np.random.default_rng(0)
    y = np.where(rng.random(n) < 0.25, "a", "b")
    return pd.DataFrame({"u": rng.normal(np.where(y == "a", -10, 10)), "v": rng.normal(size=n)}), y


def pickled(flow):
    file = io.BytesIO()
    joblib.dump(flow, file)
    file.seek(0)
    return joblib.load(file)


@pytest.fixture(scope="module")
def conditional():
    X, y = two_groups()
    return FlowMatcher(**SMALL, random_state=0).fit(X, pd.Series(y, name="group"))


# The checks warn about themselves: one skips without SCIPY_ARRAY_API, others pass what deserves a warning.
@pytest.mark.filterwarnings("default")
@parametrize_with_checks([FlowMatcher(**TINY)], expected_failed_checks=lambda estimator: EXPECTED, xfail_strict=True)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", [check_methods_sample_order_invariance, check_methods_subset_invariance])
def test_scikit_learn_conventions_of_a_density_without_y(check):
    check("FlowMatcher", Unconditional(**TINY, random_state=0))


def test_a_frame_comes_back_with_names_dtypes_integers_and_constants():
    X = table()
    drawn = FlowMatcher(**TINY, positive=["price"], random_state=0).fit(X).sample(500)
    assert list(drawn.columns) == list(X.columns)
    expected = ["float64", "int64", "bool", "int64", "float32", "int64", "float64"]
    assert [str(dtype) for dtype in drawn.dtypes] == expected
    assert (drawn["year"] == 2024).all()
    assert (drawn["rate"] == 0.25).all()
    assert (drawn["price"] > 0).all()
    assert 0.2 < drawn["ok"].mean() < 0.8
    assert drawn["count"].between(-9, 18).all()
    assert drawn["count"].nunique() > 5


def test_rows_that_the_fit_rules_out_score_minus_infinity():
    X = table()
    flow = FlowMatcher(**TINY, positive=["price"], random_state=0).fit(X)
    assert np.isfinite(flow.score_samples(X)).all()
    for name, value in {"year": 2025, "count": 0.5, "price": -1.0}.items():
        assert flow.score(X.head(1).assign(**{name: value})) == -np.inf


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
def test_an_array_comes_back_as_an_array_of_its_dtype(dtype):
    X = (3 * gaussian()).astype(dtype) if dtype != "bool" else gaussian() > 0
    drawn = FlowMatcher(**TINY, random_state=0).fit(X).sample(7)
    assert drawn.shape == (7, 2)
    assert drawn.dtype == X.dtype


@pytest.mark.parametrize("columns", [[0, 1], pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])])
def test_column_names_that_are_no_text_are_kept(columns):
    X = pd.DataFrame(gaussian(), columns=columns)
    assert list(FlowMatcher(**TINY).fit(X).sample(2).columns) == list(columns)


def test_large_integers_are_integers():
    X = 2**30 + np.random.default_rng(0).integers(0, 9, (60, 1))
    assert FlowMatcher(**TINY).fit(X).model_.transform.kinds == ("integer",)


def test_a_list_of_rows_is_an_array():
    assert FlowMatcher(**TINY).fit([[1, 2], [2, 3], [4, 1]]).sample().shape == (1, 2)


def test_log_density_of_a_gaussian_in_the_users_units():
    law = multivariate_normal([100, -3], [[25, 4], [4, 1]])
    held_out = law.rvs(1000, random_state=1)
    flow = FlowMatcher(**SMALL, random_state=0).fit(law.rvs(4000, random_state=0))
    error = flow.score_samples(held_out) - law.logpdf(held_out)
    assert abs(error.mean()) < 0.1
    assert np.abs(error).mean() < 0.2
    assert flow.score(held_out) == pytest.approx(flow.score_samples(held_out).mean(), abs=1e-12)
    assert np.cov(flow.sample(4000).T) == pytest.approx(np.array([[25, 4], [4, 1]]), rel=0.15)


def test_a_fair_coin_of_integers_has_log_probability_minus_log_two():
    X = np.random.default_rng(0).integers(0, 2, (2000, 1))
    flow = FlowMatcher(**{**SMALL, "steps": 300}, random_state=0).fit(X)
    assert flow.score(X) == pytest.approx(-math.log(2), abs=0.1)


def test_sample_takes_one_condition_or_one_a_row(conditional):
    assert (conditional.sample(200, y="a")["u"] < 0).mean() > 0.98
    assert (conditional.sample(200, y="b")["u"] > 0).mean() > 0.98
    each = np.array(["a", "b"] * 50)
    assert ((conditional.sample(100, y=each)["u"] < 0) == (each == "a")).mean() > 0.97
    assert conditional.sample(y="a").shape == (1, 2)


def test_sample_without_a_condition_draws_it_as_in_training(conditional):
    assert (conditional.sample(1000)["u"] < 0).mean() == pytest.approx(0.25, abs=0.08)


def test_scores_depend_on_the_condition(conditional):
    X, y = two_groups(100)
    right, wrong = conditional.score(X, y), conditional.score(X, np.where(y == "a", "b", "a"))
    assert right > wrong + 5
    assert (conditional.score_samples(X[y == "a"], "a") == conditional.score_samples(X[y == "a"], y[y == "a"])).all()


def test_the_condition_keeps_its_name(conditional):
    assert conditional.model_.condition.name == "group"
    assert FlowMatcher(**TINY).fit(*two_groups(40)).model_.condition.name == "y"


@pytest.mark.parametrize(
    ("y", "kind"),
    [
        (np.arange(40) % 3, "category"),
        (np.arange(40) % 2 == 0, "category"),
        (pd.Series(list("abcd") * 10, dtype="category"), "category"),
        (np.linspace(0, 1, 40), "number"),
        (np.arange(40), "number"),
    ],
)
def test_kinds_of_condition(y, kind):
    flow = FlowMatcher(**TINY, random_state=0).fit(gaussian(40), y)
    assert flow.model_.condition.kind == kind
    assert np.isfinite(flow.score_samples(gaussian(40), y)).all()
    assert flow.sample(3, y=y[0]).shape == flow.sample(3).shape == (3, 2)


def test_conditions_that_do_not_fit_are_refused(conditional):
    X, y = two_groups(10)
    plain = FlowMatcher(**TINY).fit(X)
    for call in (lambda: plain.sample(3, y="a"), lambda: plain.score(X, y)):
        with pytest.raises(ValueError, match="y must be None: the model was fitted without one"):
            call()
    with pytest.raises(ValueError, match="y is needed: the density is conditional on group"):
        conditional.score_samples(X)
    with pytest.raises(ValueError, match="y must be one value or one for each of 3 rows, got 10"):
        conditional.sample(3, y=y)
    with pytest.raises(ValueError, match=r"group.*no category c; categories are a, b"):
        conditional.sample(3, y="c")


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"solver": "simpson"}, "solver must be one of .*rk4.*, got 'simpson'"),
        ({"nfe": 3}, "nfe must be one that rk4 can spend, such as 4 or 8, got 3"),
        ({"solver": "dopri5", "nfe": 8}, "nfe can't be set"),
        ({"device": "abacus"}, "device must be one that torch has here, such as cpu, got 'abacus'"),
        ({"positive": "x0"}, "positive must be a list of column names, got 'x0'"),
        ({"positive": ["x9"]}, "positive: no column x9"),
        ({"random_state": "zero"}, "cannot be used to seed"),
    ],
)
def test_parameters_out_of_range_are_refused(parameter, message):
    with pytest.raises(ValueError, match=message):
        FlowMatcher(**{**TINY, **parameter}).fit(gaussian(20))


@pytest.mark.parametrize("parameter", [{"steps": "2"}, {"depth": 2.5}, {"learning_rate": "fast"}, {"nfe": 8.0}])
def test_parameters_of_the_wrong_type_are_refused(parameter):
    with pytest.raises(TypeError, match=next(iter(parameter))):
        FlowMatcher(**{**TINY, **parameter}).fit(gaussian(20))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((5, 2)), "every column is constant"),
        (np.ones((1, 2)), "minimum of 2 is required"),
        (np.arange(4.0), "Expected 2D array"),
        (np.array([[1.0], [np.nan]]), "NaN"),
        (np.arange(4).astype("M8[D]")[:, None], "turn dates into numbers"),
        (pd.DataFrame({"day": pd.date_range("2020", periods=4)}), "column day holds datetime64"),
        (pd.DataFrame({"word": ["x", "z"], "v": [0.0, 1.0]}), "could not convert string to float"),
        (pd.DataFrame({"v": [0.0, 1.0], "w": [1.0, 2.0]}).set_axis(["v", "v"], axis=1), "several columns called v"),
    ],
)
def test_data_that_are_no_numbers_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        FlowMatcher(**TINY).fit(X)


def test_a_condition_called_like_a_column_is_refused():
    X = pd.DataFrame(gaussian(20), columns=["x", "y"])
    with pytest.raises(ValueError, match="y is called y, as a column of X is"):
        FlowMatcher(**TINY).fit(X, X["x"].to_numpy())
    assert FlowMatcher(**TINY).fit(X, X["x"].rename("z")).model_.condition.name == "z"


def test_columns_in_another_order_are_refused():
    X = pd.DataFrame(gaussian(20), columns=["b", "a"])
    with pytest.raises(ValueError, match="feature names should match"):
        FlowMatcher(**TINY).fit(X).score_samples(X[["a", "b"]])


def test_nothing_works_before_fit(tmp_path):
    flow = FlowMatcher(**TINY)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        flow.fit(gaussian(20), np.zeros(19))
    for call in (flow.sample, lambda: flow.score(gaussian(5)), lambda: flow.save(tmp_path / "model.safetensors")):
        with pytest.raises(NotFittedError):
            call()


@pytest.mark.parametrize("n", [0, -1])
def test_sample_needs_at_least_one_row(conditional, n):
    with pytest.raises(ValueError, match="n_samples"):
        conditional.sample(n)


def test_parameters_are_stored_cloned_and_set():
    options = {**TINY, "positive": ["x0"], "solver": "heun", "nfe": 8, "random_state": 3, "minutes": 0.1}
    flow = FlowMatcher(**options)
    assert flow.get_params() == {**FlowMatcher().get_params(), **options}
    assert clone(flow).get_params() == flow.get_params()
    assert not hasattr(clone(FlowMatcher(**TINY).fit(gaussian())), "model_")
    assert flow.set_params(width=16).width == 16


def test_parameters_reach_the_model():
    options = {**TINY, "learning_rate": 0.02, "solver": "heun", "nfe": 8}
    model = FlowMatcher(**options).fit(gaussian(), np.zeros(300)).model_
    config = model.about["config"]
    assert (config["width"], config["depth"], config["condition"]) == (8, 2, "y")
    recipe = {name: config["recipe"][name] for name in ("steps", "batch_size", "learning_rate")}
    assert recipe == {"steps": 2, "batch_size": 32, "learning_rate": 0.02}
    assert (model.preset.solver, model.preset.nfe) == ("heun", 8)
    assert model.field.net.config == {"dim": 2, "width": 8, "depth": 2, "condition": 1}


def test_solver_without_nfe_takes_its_own():
    flow = FlowMatcher(**TINY, solver="dopri5", random_state=0).fit(gaussian())
    assert flow.model_.preset.nfe is None
    fixed = FlowMatcher(**TINY, random_state=0).fit(gaussian())
    assert flow.sample(50) == pytest.approx(fixed.sample(50), abs=1e-3)


def test_cross_validation_grid_search_and_pipeline():
    X = gaussian(90)
    assert np.isfinite(cross_val_score(FlowMatcher(**TINY), X, cv=3)).all()
    assert np.isfinite(cross_val_score(FlowMatcher(**TINY), X, np.arange(90) % 2, cv=3)).all()
    search = GridSearchCV(FlowMatcher(**TINY, random_state=0), {"width": np.array([4, 8])}, cv=2).fit(X)
    assert search.best_params_["width"] in (4, 8)
    assert search.best_estimator_.sample(2).shape == (2, 2)
    assert np.isfinite(make_pipeline(StandardScaler(), FlowMatcher(**TINY)).fit(X).score(X))


def test_a_pickled_estimator_is_the_same_bit_for_bit():
    X, y = two_groups(50)
    flow = FlowMatcher(**TINY, random_state=0).fit(X, y)
    again = pickled(flow)
    pd.testing.assert_frame_equal(again.sample(20), flow.sample(20), check_exact=True)
    assert (again.score_samples(X, y) == flow.score_samples(X, y)).all()
    assert again.get_params() == flow.get_params()
    assert not hasattr(pickled(clone(flow)), "model_")


def test_a_saved_model_works_on_tensors(tmp_path):
    X = table()
    flow = FlowMatcher(**{**TINY, "width": np.int64(8)}, positive=("price",), random_state=0).fit(X)
    flow.save(tmp_path / "model.safetensors")
    model = pl.load(tmp_path)
    rows = torch.from_numpy(X.to_numpy(np.float64))
    ours = flow.model_.log_prob(rows, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.log_prob(rows, generator=torch.Generator().manual_seed(1)), ours)
    assert model.about["dtypes"]["count"] == "int64"


def test_an_integer_random_state_fixes_fit_and_sample():
    X = gaussian()
    one, two, other = (FlowMatcher(**TINY, random_state=seed).fit(X) for seed in (0, 0, 1))
    assert (one.sample(9) == two.sample(9)).all()
    assert (one.sample(9) == one.sample(9)).all()
    assert (one.sample(9) != other.sample(9)).all()
    assert (one.score_samples(X) == two.score_samples(X)).all()
    assert (one.score_samples(X) != other.score_samples(X)).any()


def test_a_random_state_object_goes_on():
    X = gaussian()
    first, second = (FlowMatcher(**TINY, random_state=np.random.RandomState(0)).fit(X) for _ in range(2))
    early, late = first.sample(9), first.sample(9)
    assert (early != late).all()
    assert (early == second.sample(9)).all()
    np.random.seed(4)
    unseeded = FlowMatcher(**TINY).fit(X).sample(9)
    np.random.seed(4)
    assert (FlowMatcher(**TINY).fit(X).sample(9) == unseeded).all()


def test_fit_and_sample_leave_torch_as_it_was():
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        FlowMatcher(**TINY, random_state=0).fit(gaussian()).sample(3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_verbose_prints_the_loss(capsys):
    FlowMatcher(**{**TINY, "steps": 20}).fit(gaussian())
    assert capsys.readouterr().out == ""
    FlowMatcher(**{**TINY, "steps": 20}, verbose=True).fit(gaussian())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("step 20/20  loss ")


def test_minutes_plan_the_steps():
    model = FlowMatcher(**{**TINY, "steps": None}, minutes=0.002).fit(gaussian()).model_
    assert 1 <= model.about["steps"] < 500


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_pickled_for_the_cpu():
    X, y = two_groups(50)
    flow = FlowMatcher(**{**TINY, "device": "cuda"}, random_state=0).fit(X, y)
    again = pickled(flow)
    assert next(flow.model_.field.parameters()).is_cuda
    assert not next(again.model_.field.parameters()).is_cuda
    assert again.score_samples(X, y) == pytest.approx(flow.score_samples(X, y), abs=1e-3)
    assert again.sample(9, y="a").to_numpy() == pytest.approx(flow.sample(9, y="a").to_numpy(), abs=1e-2)
