import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathline import transforms
from pathline.transforms import ConditionTransform, Identity, TableTransform


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def mixed(n: int = 200) -> tuple[Tensor, list[str]]:
    """Real, constant, integer, positive and positive integer columns."""
    g = seeded()
    real = torch.randn(n, 1, generator=g, dtype=torch.float64) * 3 - 7
    whole = torch.randint(-5, 30, (n, 1), generator=g).double()
    positive = torch.randn(n, 1, generator=g, dtype=torch.float64).mul(2).exp()
    counts = torch.randint(1, 4, (n, 1), generator=g).double()
    return torch.cat([real, torch.full_like(real, 2.5), whole, positive, counts], 1), ["r", "c", "i", "p", "k"]


def fitted() -> tuple[TableTransform, Tensor]:
    x, names = mixed()
    return TableTransform.fit(x, names, positive=["p", "k"]), x


class TestTableTransform:
    def test_kinds(self):
        transform, _ = fitted()
        assert transform.kinds == ("real", "constant", "integer", "real", "integer")
        assert transform.positive == (False, False, False, True, True)
        assert transform.dim == 4

    def test_round_trip(self):
        transform, x = fitted()
        z, log_abs_det = transform.forward(x, seeded(1))
        assert z.shape == (200, 4)
        assert log_abs_det.shape == (200,)
        back = transform.inverse(z)
        assert torch.equal(back[:, [1, 2, 4]], x[:, [1, 2, 4]])
        torch.testing.assert_close(back, x, rtol=1e-13, atol=1e-13)

    def test_survives_a_float32_network(self):
        transform, x = fitted()
        z, _ = transform.forward(x, seeded(1))
        back = transform.inverse(z.float())
        assert torch.equal(back[:, 1], x[:, 1])
        torch.testing.assert_close(back[:, [0, 3]], x[:, [0, 3]], rtol=1e-5, atol=1e-5)
        assert (back[:, 3] > 0).all()
        assert (back[:, 4] >= 1).all()

    def test_standardises(self):
        x, names = mixed()
        transform = TableTransform.fit(x, names, positive=["p", "k"])
        # 800,000 draws of u: the sd of a mean is at most 1.2e-3, of a variance 2.5e-3; 0.02 is 8 sd (P < 1e-14).
        z, _ = transform.forward(x.repeat(4000, 1), seeded(2))
        assert z.mean(0).abs().max() < 0.02
        assert (z.var(0, correction=0) - 1).abs().max() < 0.02
        assert z[:, [0, 2]].mean(0).abs().max() < 1e-12

    @pytest.mark.parametrize("m", [0, 1, 2, 37, 999, 1000, 10**6, 2**39])
    def test_log_of_a_dequantised_count(self, m: int):
        nodes, weights = np.polynomial.legendre.leggauss(60)
        u, weights = (nodes + 1) / 2, weights / 2
        u, weights = u**4, weights * 4 * u**3
        deviation = np.log1p(u / m) if m else np.log(u)
        mean, variance = transforms._log_uniform(column(m))
        center = (weights * deviation).sum()
        assert mean.item() == pytest.approx(center + (math.log(m) if m else 0.0), rel=1e-10)
        assert variance.item() == pytest.approx((weights * (deviation - center) ** 2).sum(), rel=1e-5, abs=0)

    def test_near_constant_column(self):
        offsets = torch.randn(1000, generator=seeded(), dtype=torch.float64)
        x = (1e9 + 1e-3 * offsets)[:, None]
        transform = TableTransform.fit(x, ["a"])
        exact = x[:, 0] - 1e9
        expected = (exact - exact.mean()) / exact.std(correction=0)
        # 1e9 is resolved to 1.2e-7, a ten-thousandth of the spread.
        torch.testing.assert_close(transform.forward(x)[0][:, 0], expected, rtol=0, atol=2e-4)
        assert torch.equal(transform.inverse(transform.forward(x)[0]), x)

    @pytest.mark.parametrize("n", [3, 7, 10, 1000, 4099])
    def test_shift_is_the_nearest_number_to_the_mean(self, n: int):
        x = 1e9 + 1e-5 * torch.randn(n, 1, generator=seeded(n), dtype=torch.float64)
        exact = 1e9 + math.fsum(v - 1e9 for v in x[:, 0].tolist()) / n
        assert TableTransform.fit(x, ["a"]).shift == (exact,)

    def test_spread_of_a_coin(self):
        transform = TableTransform.fit(column(0, 1), ["a"])
        assert transform.shift == (1.0,)
        assert transform.scale[0] == pytest.approx(math.sqrt(1 / 4 + 1 / 12), rel=1e-15)

    @pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
    @pytest.mark.parametrize("positive", [(), ("a",)])
    def test_no_draw_moves_an_integer(self, u: float, positive: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u, dtype=torch.float64))
        spread = torch.randint(1, 2**40, (3000, 1), generator=seeded()).double()
        for x in spread, spread % 1000 + 1, spread % 1000 + 10**9, (spread**0.5).ceil():
            transform = TableTransform.fit(x, ["a"], positive, [True])
            assert torch.equal(transform.inverse(transform.forward(x)[0]), x)

    @pytest.mark.parametrize("magnitude", [5e-310, 1e-200, 1e-6, 1.0, 1e9, 1e200, 1e306])
    def test_any_magnitude(self, magnitude: float):
        x = column(-1.0, 0.25, 0.5, 1.5) * magnitude
        z, log_abs_det = TableTransform.fit(x, ["a"]).forward(x)
        assert abs(z.mean().item()) < 1e-6
        assert z.square().mean().item() == pytest.approx(1, rel=1e-6)
        assert log_abs_det.isfinite().all()

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_round_trip_of_any_table(self, data: st.DataObject):
        n = data.draw(st.integers(2, 12))
        exponent = data.draw(st.integers(-6, 9))
        reals = st.floats(-1, 1, width=32).map(lambda v: v * 10.0**exponent)
        kinds = {
            "real": st.lists(reals, min_size=n, max_size=n),
            "positive": st.lists(reals.map(lambda v: abs(v) + 1e-9), min_size=n, max_size=n),
            "integer": st.lists(st.integers(-(2**40), 2**40), min_size=n, max_size=n),
            "count": st.lists(st.integers(1, 2**40), min_size=n, max_size=n),
            "constant": reals.map(lambda v: [v] * n),
        }
        names = data.draw(st.lists(st.sampled_from(sorted(kinds)), max_size=4))
        x = torch.tensor([list(range(n)), *(data.draw(kinds[kind]) for kind in names)], dtype=torch.float64).T
        columns = [f"{kind}{i}" for i, kind in enumerate(["first", *names])]
        positive = [name for name in columns if name.startswith(("positive", "count"))]
        whole = [name.startswith(("first", "integer", "count")) for name in columns]
        transform = TableTransform.fit(x, columns, positive, whole)
        z, log_abs_det = transform.forward(x, seeded(data.draw(st.integers(0, 2**31))))
        back = transform.inverse(z)
        assert z.isfinite().all()
        assert log_abs_det.isfinite().all()
        exact = torch.tensor(whole) | torch.tensor([kind == "constant" for kind in transform.kinds])
        assert torch.equal(back[:, exact], x[:, exact])
        assert ((back - x).abs() <= 1e-12 * x.abs().amax(0)).all()
        log = torch.tensor(transform.positive)
        assert ((back - x).abs() <= 1e-12 * x)[:, log].all()
        assert TableTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform

    def test_log_abs_det_is_the_jacobians(self):
        x, names = mixed(6)
        x[0, 3], x[1, 3] = 1e-9, 1e9
        x, names = x[:, [0, 1, 3]], ["r", "c", "p"]
        transform = TableTransform.fit(x, names, positive=["p"])
        for row in x:
            jacobian = torch.autograd.functional.jacobian(lambda r: transform.forward(r[None])[0][0], row)
            assert isinstance(jacobian, Tensor)
            expected = torch.linalg.slogdet(jacobian[:, [0, 2]]).logabsdet
            torch.testing.assert_close(transform.forward(row[None])[1][0], expected)

    @pytest.mark.parametrize("positive", [(), ("a",)])
    def test_density_of_a_pushed_normal_integrates_to_one(self, positive: tuple[str, ...]):
        x = column(0.5, 2.0, 3.0, 7.5)
        transform = TableTransform.fit(x, ["a"], positive)
        z = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
        at = transform.inverse(z)
        density = (-(z[:, 0] ** 2) / 2 - math.log(2 * math.pi) / 2 + transform.forward(at)[1]).exp()
        assert torch.trapezoid(density, at[:, 0]).item() == pytest.approx(1, abs=1e-4)

    @pytest.mark.parametrize("positive", [(), ("a",)])
    def test_mass_of_integers_sums_to_one(self, positive: tuple[str, ...]):
        transform = TableTransform.fit(column(1, 2, 2, 3, 5), ["a"], positive)
        k = torch.arange(1 if positive else -40, 400, dtype=torch.float64)
        z, log_abs_det = transform.forward(k.repeat(2000)[:, None], seeded(3))
        density = (-(z[:, 0] ** 2) / 2 - math.log(2 * math.pi) / 2 + log_abs_det).exp().reshape(2000, -1)
        masses = density.sum(1)
        # Each of 2000 rows of draws estimates the sum; 6 standard errors are passed with probability 2e-9.
        assert abs(masses.mean() - 1) < 6 * masses.std() / 2000**0.5 + 1e-6
        assert masses.std() < 0.5

    def test_rows_that_the_fit_rules_out(self):
        transform, x = fitted()
        impossible = x[:5].clone()
        impossible[0, 1] += 1
        impossible[1, 2] += 0.5
        impossible[2, 3] = 0
        impossible[3, 4] = 0
        z, log_abs_det = transform.forward(impossible, seeded())
        assert z.isfinite().all()
        assert log_abs_det.isneginf().tolist() == [True, True, True, True, False]

    @pytest.mark.parametrize("far", [1e3, 1e300, torch.inf])
    def test_inverse_stays_finite_and_positive(self, far: float):
        transform, _ = fitted()
        x = transform.inverse(torch.tensor([[far] * 4, [-far] * 4], dtype=torch.float64))
        assert x.isfinite().all()
        assert (x[:, 3] > 0).all()
        assert x[1, 4] == 1

    @pytest.mark.parametrize("positive", [(), ("a",)])
    def test_decimals_that_repeat_are_counted_in_steps(self, positive: tuple[str, ...]):
        steps = torch.randint(1, 40, (200, 1), generator=seeded(3)).double()
        x = steps / 100
        transform = TableTransform.fit(x, "a", positive=positive)
        assert (transform.kinds, transform.decimals) == (("decimal",), (2,))
        z, log_abs_det = transform.forward(x, seeded(4))
        assert torch.equal(transform.inverse(z), x)
        whole, whole_det = TableTransform.fit(steps, "a", positive=positive).forward(steps, seeded(4))
        assert torch.allclose(z, whole, atol=1e-12)
        assert torch.allclose(log_abs_det, whole_det + math.log(100))
        off = transform.forward(column(0.105), seeded(4))[1]
        assert off.tolist() == [-torch.inf]
        assert transform.snap(column(0.117, 0.11)).flatten().tolist() == [0.11, 0.11]

    def test_decimals_that_do_not_repeat_are_real(self):
        x = torch.arange(100.0, dtype=torch.float64)[:, None] / 1000
        assert TableTransform.fit(x, "a").kinds == ("real",)

    def test_integers_are_dequantised_by_the_generator(self):
        transform, x = fitted()
        first, again, other = (transform.forward(x, seeded(seed))[0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first[:, 1], other[:, 1])
        assert torch.equal(first[:, 0], other[:, 0])

    def test_which_columns_are_integers(self):
        x = torch.tensor([[1, 1.5, 2.0**24, 1], [2, 2, 0, 2], [0, 0, 0, 0]], dtype=torch.float64)
        assert TableTransform.fit(x, "abcd").kinds == ("integer", "real", "real", "integer")
        flags = [True, False, True, False]
        assert TableTransform.fit(x, "abcd", integer=flags).kinds == ("integer", "real", "integer", "real")
        assert TableTransform.fit(column(0, 1, 2.0**41), "a", integer=[True]).kinds == ("real",)

    def test_bad_fits(self):
        x, names = mixed(5)
        bad = x.clone()
        bad[3, 3] = -2.0
        with pytest.raises(ValueError, match=r"column p, row 4: -2; a positive column needs values above 0"):
            TableTransform.fit(bad, names, positive=["p"])
        bad[2, 0] = torch.nan
        with pytest.raises(ValueError, match=r"column r, row 3: nan; values must be finite; fill in or delete"):
            TableTransform.fit(bad, names)
        with pytest.raises(ValueError, match=r"column a, row 2: 0; a positive column"):
            TableTransform.fit(column(1, 0), ["a"], positive=["a"])
        with pytest.raises(ValueError, match=r"positive: no column price; did you mean prize\?"):
            TableTransform.fit(column(1, 2), ["prize"], positive=["price"])
        with pytest.raises(ValueError, match=r"column a, row 1: 0.5; integer columns need whole numbers"):
            TableTransform.fit(column(0.5, 1), ["a"], integer=[True])
        with pytest.raises(ValueError, match=r"one flag for each of 1 columns, got 2"):
            TableTransform.fit(column(0.5, 1), ["a"], integer=[True, False])
        with pytest.raises(ValueError, match=r"every column is constant \(a\); give at least one that varies"):
            TableTransform.fit(column(3, 3), ["a"])
        with pytest.raises(ValueError, match=r"at least 2 rows, got 1"):
            TableTransform.fit(column(3), ["a"])
        with pytest.raises(ValueError, match=r"shape \(n, 2\), one column per name, got \(2, 1\)"):
            TableTransform.fit(column(3, 4), ["a", "b"])
        with pytest.raises(ValueError, match=r"column a spreads beyond float64; rescale it, or leave it out of pos"):
            TableTransform.fit(column(1e9, 1e9 + 2e-7), ["a"], positive=["a"])
        with pytest.raises(ValueError, match=r"column 'a\\nb', row 1"):
            TableTransform.fit(column(math.inf, 1), ["a\nb"])

    def test_bad_rows(self):
        transform, x = fitted()
        with pytest.raises(ValueError, match=r"x must have shape \(n, 5\)"):
            transform.forward(x[:, :3])
        with pytest.raises(ValueError, match=r"z must have shape \(n, 4\), got \(200, 5\)"):
            transform.inverse(x)
        with pytest.raises(ValueError, match=r"column i, row 1: inf"):
            transform.forward(torch.full_like(x, 1).index_fill(1, torch.tensor([2]), torch.inf))


def test_identity():
    x = torch.randn(4, 3, 2, generator=seeded())
    z, log_abs_det = Identity().forward(x)
    assert torch.equal(Identity().inverse(z), x)
    assert torch.equal(log_abs_det, torch.zeros(4))
    assert Identity.from_dict(Identity().to_dict()) == Identity()


class TestConditionTransform:
    @pytest.mark.parametrize(
        ("values", "known"),
        [
            (["b", "a", "b", "<i>c, d</i>\n"], ("<i>c, d</i>\n", "a", "b")),
            ([True, False, True, True], (False, True)),
            ([3, 1, 3, 3], (1, 3)),
            ([3.0, 1.0, 3.0, 1.0], (1, 3)),
        ],
    )
    @pytest.mark.parametrize("as_array", [False, True])
    def test_categories(self, values: list, known: tuple, as_array: bool):
        given_values = np.array(values) if as_array else values
        condition = ConditionTransform.fit("c", given_values)
        assert condition.kind == "category"
        assert condition.values == known
        assert [type(value) for value in condition.values] == [type(value) for value in known]
        assert condition.width == len(known)
        coded = condition.encode(given_values)
        assert coded.dtype == torch.float32
        assert [condition.values[i] for i in coded.argmax(1)] == values
        assert torch.equal(coded.sum(1), torch.ones(4))
        assert condition.frequencies == tuple(values.count(value) / 4 for value in known)
        assert [condition.parse(str(value)) for value in known] == list(known)
        assert ConditionTransform.from_dict(json.loads(json.dumps(condition.to_dict()))) == condition

    def test_numbers(self):
        values = np.random.default_rng(0).gamma(2.0, 3.0, 20_000)
        condition = ConditionTransform.fit("age", values)
        assert (condition.kind, condition.width, condition.integer) == ("number", 1, False)
        assert len(condition.quantiles) == 1001
        coded = condition.encode(values)
        assert coded.shape == (20_000, 1)
        assert abs(coded.mean()) < 1e-4
        assert abs(coded.std() - 1) < 1e-3
        assert ConditionTransform.from_dict(json.loads(json.dumps(condition.to_dict()))) == condition
        drawn = np.sort(condition.draw(20_000, seeded()))
        # Kolmogorov-Smirnov: 0.001 for the quantiles; beyond it 0.02 has P < 2 exp(-2 n 0.02^2) = 2e-7.
        ranks = np.searchsorted(np.sort(values), drawn) / len(values)
        assert np.abs(ranks - np.arange(20_000) / 20_000).max() < 0.021
        assert condition.parse("3.5") == 3.5

    def test_whole_numbers(self):
        condition = ConditionTransform.fit("n", np.arange(100) % 30)
        assert (condition.kind, condition.integer, len(condition.quantiles)) == ("number", True, 27)
        drawn = condition.draw(500, seeded())
        assert drawn.dtype == np.int64
        assert set(drawn) <= set(range(30))
        assert condition.parse("7.0") == 7

    def test_few_real_values_are_numbers(self):
        assert ConditionTransform.fit("x", [0.5, 1.5, 0.5]).kind == "number"

    def test_constant_number(self):
        condition = ConditionTransform.fit("x", [0.5, 0.5])
        assert condition.encode([0.5, 1.5]).tolist() == [[0.0], [1.0]]
        assert condition.draw(3, seeded()).tolist() == [0.5] * 3

    @pytest.mark.parametrize("values", [["a", "b", "b", "b"], [False, True, True, True], [4, 9, 9, 9]])
    def test_drawn_categories_follow_the_frequencies(self, values: list):
        drawn = ConditionTransform.fit("c", values).draw(10_000, seeded()).tolist()
        assert {type(value) for value in drawn} == {type(values[0])}
        # 10000 draws at 1/4: sd 43; 300 is 6.9 sd, P < 1e-11.
        assert abs(drawn.count(values[0]) - 2500) < 300

    @pytest.mark.parametrize(
        ("text", "value"), [("0", False), ("false", False), ("True", True), ("TRUE", True), ("1", True)]
    )
    def test_spellings_of_booleans(self, text: str, value: bool):
        assert ConditionTransform.fit("ok", [True, False]).parse(text) is value

    def test_category_that_looks_like_a_number(self):
        assert ConditionTransform.fit("c", ["1", "2.0"]).parse("2.0") == "2.0"
        with pytest.raises(ValueError, match=r"condition c: no category 2; "):
            ConditionTransform.fit("c", ["1", "2.0"]).parse("2")

    def test_unknown_values(self):
        species = ConditionTransform.fit("species", ["setosa", "versicolor"])
        expected = r"no category setosaa; did you mean setosa\?; categories are setosa, versicolor$"
        with pytest.raises(ValueError, match=expected):
            species.parse("setosaa")
        with pytest.raises(ValueError, match=r"condition species: row 2: " + expected):
            species.encode(["setosa", "setosaa"])
        with pytest.raises(ValueError, match=r"row 1: no category 3"):
            species.encode([3])
        with pytest.raises(ValueError, match=r"no category yes; categories are False, True"):
            ConditionTransform.fit("ok", [True, False]).parse("yes")
        with pytest.raises(ValueError, match=r"w19, \.\.\. \(30 in all\)$"):
            ConditionTransform.fit("c", [f"w{i:02}" for i in range(30)]).parse("?")
        number = ConditionTransform.fit("age", np.arange(100) / 4)
        for text in "old", "nan", "inf":
            with pytest.raises(ValueError, match=rf"age: '{text}' is no number; it was 0 to 24.75 in training"):
                number.parse(text)
        with pytest.raises(ValueError, match=r"row 1: 'old' is no number"):
            number.encode(["old"])
        with pytest.raises(ValueError, match=r"row 2 is missing or infinite"):
            number.encode([1.0, math.nan])
        with pytest.raises(ValueError, match=r"n must be at least 1, got 0"):
            number.draw(0)

    @pytest.mark.parametrize("missing", [None, math.nan])
    @pytest.mark.parametrize("present", ["a", 1.5, 3])
    def test_missing_values(self, present: object, missing: object):
        with pytest.raises(ValueError, match=r"condition c: row 3 is missing or infinite; fill it in or delete it"):
            ConditionTransform.fit("c", [present, present, missing])

    def test_bad_columns(self):
        with pytest.raises(ValueError, match=r"1001 distinct texts, more than 1000; choose another column or merge"):
            ConditionTransform.fit("c", [str(i) for i in range(1001)])
        with pytest.raises(ValueError, match=r"holds int, str; write it all as text or all as real numbers"):
            ConditionTransform.fit("c", ["a", 1])
        with pytest.raises(ValueError, match=r"holds datetime64\[D\]; write it as text or real numbers"):
            ConditionTransform.fit("c", np.array(["2020-01-01"], dtype="M8[D]"))
        with pytest.raises(ValueError, match=r"row 1 is missing or infinite"):
            ConditionTransform.fit("c", [math.inf, 1.0])
        with pytest.raises(ValueError, match=r"shape \(n,\), got \(2, 2\)"):
            ConditionTransform.fit("c", np.zeros((2, 2)))
        with pytest.raises(ValueError, match=r"has no rows; give at least one"):
            ConditionTransform.fit("c", [])

    @pytest.mark.parametrize(
        "values", [np.arange(30, dtype="uint8"), np.arange(30, dtype="float32"), [2**70, 1], [np.int64(3), 4]]
    )
    def test_widths_of_numbers(self, values: list | np.ndarray):
        condition = ConditionTransform.fit("c", values)
        assert condition.encode(values).isfinite().all()
        assert json.dumps(condition.to_dict())
