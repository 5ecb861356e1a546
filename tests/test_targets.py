"""Exact targets: the same expected gradient as the conditional one, and less variance."""

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.objectives import Drawn, FlowMatching, Sampled, stratified
from pathline.paths import AffinePath, BridgePath, GaussianPath
from pathline.schedules import linear
from pathline.sources import StandardNormal
from pathline.typing import Batch
from problems import SCHEDULES, annulus, close, curved_path, every_prediction, normal, seeded

BATCHES, SIZE = 300, 16
DATA = annulus(40) / 2
WEIGHTS = 1 + 0.9 * DATA[:, 0].sign()
Z = 6.0  # P(|N(0, 1)| > 6) = 2e-9; 21 parameters a comparison, below 20 comparisons: error probability below 1e-6
LINEAR = AffinePath(linear())
PATHS = {"linear": LINEAR, "vp": AffinePath(SCHEDULES["vp"])}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = normal(*parameter.shape, seed=i)

    def forward(self, x: Tensor, t: Tensor, /) -> Tensor:
        return self.b(torch.tanh(self.a(torch.cat([x, t[:, None]], 1))))


def gradients(loss: FlowMatching, weighted: bool = False) -> Tensor:
    """The gradient of every batch's mean loss, ``(BATCHES, parameters)``; the same draws for every target."""
    net, parts = Net(), []
    rows = torch.randint(len(DATA), (BATCHES, SIZE), generator=seeded(0))
    generator = seeded(1)
    for index in rows:
        batch = Batch(DATA[index], weight=WEIGHTS[index] if weighted else None)
        seed = int(torch.randint(2**40, (), generator=generator))
        parts.append(loss.draw(batch, seeded(seed)))

    def mean(parameters: dict[str, Tensor], x: Tensor, t: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        def field(x: Tensor, t: Tensor, /) -> Tensor:
            return functional_call(net, parameters, (x, t))

        return loss.loss(field, Drawn(x, t, target, weight=weight)).mean()

    drawn = [torch.stack([getattr(part, name) for part in parts]) for name in ("x_t", "t", "target")]
    weight = WEIGHTS[rows] if weighted else torch.ones(BATCHES, SIZE, dtype=torch.float64)
    each = vmap(grad(mean), in_dims=(None, 0, 0, 0, 0))(dict(net.named_parameters()), *drawn, weight)
    return torch.cat([value.reshape(BATCHES, -1) for value in each.values()], 1)


@cache
def conditional(name: str, weighted: bool = False) -> Tensor:
    return gradients(FlowMatching(PATHS[name], times=stratified), weighted)


def z_scores(values: Tensor) -> Tensor:
    return values.mean(0) / (values.std(0) / len(values) ** 0.5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear", "batch"), ("linear", "sampled"), ("linear", "all"), ("vp", "batch")],
)
def test_every_target_has_the_conditional_gradient(name: str, kind: str) -> None:
    path = PATHS[name]
    target = {"batch": "batch", "sampled": Sampled(DATA, 5), "all": EmpiricalField(path, DATA)}[kind]
    exact = gradients(FlowMatching(path, times=stratified, target=target))  # pyright: ignore[reportArgumentType]
    assert not torch.equal(exact, conditional(name))
    assert z_scores(exact - conditional(name)).abs().max() < Z
    assert exact.var(0).sum() < conditional(name).var(0).sum()


def test_weighted_rows_weigh_in_the_posterior() -> None:
    exact = gradients(FlowMatching(LINEAR, times=stratified, target="batch"), weighted=True)
    assert z_scores(exact - conditional("linear", weighted=True)).abs().max() < Z


@pytest.mark.parametrize("rows", [5, 64])
def test_sampled_rows_are_drawn_by_their_weights(rows: int) -> None:
    target = Sampled(DATA, rows, WEIGHTS)
    exact = gradients(FlowMatching(LINEAR, times=stratified, target=target), weighted=True)
    assert z_scores(exact - conditional("linear", weighted=True)).abs().max() < Z


def test_equal_draws_for_weighted_rows_are_found_out() -> None:
    wrong = gradients(FlowMatching(LINEAR, times=stratified, target=Sampled(DATA, 64, torch.ones(40))), weighted=True)
    assert z_scores(wrong - conditional("linear", weighted=True)).abs().max() > Z


def test_rows_without_weight_are_not_drawn() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    drawn = Sampled(torch.arange(5.0), 4000, weights).draw(seeded(0))
    assert sorted(drawn.unique().tolist()) == [1.0, 3.0]
    assert abs(float((drawn == 3).double().mean()) - 0.75) < 6 * (0.75 * 0.25 / 4000) ** 0.5  # p < 1e-8


def test_a_reference_of_other_rows_is_found_out() -> None:
    wrong = gradients(FlowMatching(LINEAR, times=stratified, target=EmpiricalField(LINEAR, DATA + 0.5)))
    assert z_scores(wrong - conditional("linear")).abs().max() > Z


@pytest.mark.parametrize("path", [LINEAR, curved_path()], ids=["linear", "gaussian"])
def test_the_batch_is_its_own_empirical_law(path: AffinePath | GaussianPath) -> None:
    x1 = normal(6, 2, 2, seed=0)
    drawn = FlowMatching(path, target="batch").draw(x1, seeded(0))
    close(drawn.target, EmpiricalField(path, x1)(drawn.x_t, drawn.t), 1e-12)
    plain = FlowMatching(path).draw(x1, seeded(0))
    assert torch.equal(drawn.x_t, plain.x_t)


def test_sampled_rows_and_the_row_itself_make_the_posterior() -> None:
    x1 = normal(3, 2, seed=0, dtype=torch.float32)
    point = torch.tensor([[0.5, -1.0]])
    drawn = FlowMatching(LINEAR, target=Sampled(point, 4)).draw(x1, seeded(0))
    for i in range(3):
        rows, weights = torch.cat([point, x1[i : i + 1]]), torch.tensor([4.0, 1.0])
        expected = EmpiricalField(LINEAR, rows, weights)(drawn.x_t[i : i + 1], drawn.t[i])
        close(drawn.target[i : i + 1], expected, 1e-4)


@every_prediction
def test_predictions_follow_from_the_exact_velocity(predicts) -> None:
    exact = EmpiricalField(LINEAR, DATA)
    times = FlowMatching(LINEAR, predicts, times=lambda n, *_: torch.linspace(0.1, 0.9, n).double(), target=exact)
    drawn = times.draw(DATA[:9], seeded(0))
    mean = exact.posterior_mean(drawn.x_t, drawn.t)
    noise = (drawn.x_t - drawn.t[:, None] * mean) / (1 - drawn.t[:, None])
    score = exact.score(drawn.x_t, drawn.t)
    expected = {"velocity": exact(drawn.x_t, drawn.t), "data": mean, "noise": noise, "score": score}
    close(drawn.target, expected[predicts], 1e-9)


def test_the_end_keeps_the_conditional_velocity() -> None:
    def last(n: int, *_: object) -> Tensor:
        return torch.linspace(0, 1, n)

    x1 = DATA[:5].float()
    for target in ("batch", Sampled(DATA.float(), 3), EmpiricalField(LINEAR, DATA)):
        drawn = FlowMatching(LINEAR, times=last, target=target).draw(x1, seeded(0))
        plain = FlowMatching(LINEAR, times=last).draw(x1, seeded(0))
        assert drawn.target.dtype == torch.float32
        assert torch.equal(drawn.target[-1], plain.target[-1])
        assert drawn.target.isfinite().all()


def test_conditions_go_to_the_field() -> None:
    label = torch.arange(40) % 2
    exact = EmpiricalField(LINEAR, DATA, labels=label)
    drawn = FlowMatching(LINEAR, target=exact).draw(Batch(DATA, cond={"label": label}), seeded(0))
    close(drawn.target, exact(drawn.x_t, drawn.t, label=label), 1e-12)


def test_a_mixture_of_another_law_is_a_target_too() -> None:
    exact = GaussianMixtureField(LINEAR, torch.zeros(1, 2), torch.ones(1))
    drawn = FlowMatching(LINEAR, target=exact).draw(DATA, seeded(0))
    close(drawn.target, exact(drawn.x_t, drawn.t), 1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)], ids=str)
def test_targets_of_other_rows_are_named(shape: tuple[int, ...]) -> None:
    rows = normal(5, *shape, seed=0)
    covs = torch.ones(5)
    for target in (Sampled(rows, 3), EmpiricalField(LINEAR, rows), GaussianMixtureField(LINEAR, rows, covs)):
        message = f"target must have rows of x1's shape (2,), got {type(target).__name__} of {shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            FlowMatching(LINEAR, target=target).draw(DATA[:4], seeded(0))


def test_bad_targets_are_named() -> None:
    x1 = DATA[:4]
    with pytest.raises(ValueError, match="target must be None, batch, Sampled or a field, got 'bacth'"):
        FlowMatching(LINEAR, target="bacth").draw(x1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"None or a field where there are conditions, got \['label'\]"):
        FlowMatching(LINEAR, target="batch").draw(Batch(x1, cond={"label": torch.zeros(4)}))
    with pytest.raises(ValueError, match="target must be None or a field on a BridgePath"):
        FlowMatching(BridgePath(StandardNormal(), 0.5), target="batch").draw(x1)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        Sampled(DATA, 0)
    with pytest.raises(ValueError, match=r"weights must have shape \(40,\), got \(39,\)"):
        Sampled(DATA, 3, WEIGHTS[1:])
    with pytest.raises(ValueError, match="weights must be finite, not negative and of a positive sum"):
        Sampled(DATA, 3, -WEIGHTS)
    with pytest.raises(ValueError, match=r"target must be Sampled\(data, rows, weights\)"):
        FlowMatching(LINEAR, target=Sampled(DATA, 3)).draw(Batch(x1, weight=WEIGHTS[:4]))
    with pytest.raises(ValueError, match=r"rows must be a whole number, got 2\.5"):
        Sampled(DATA, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must be finite, row 0 is not"):
        Sampled(torch.full((1, 2), torch.nan), 1)
    blurred = GaussianPath(lambda x1, t: t * x1, lambda x1, t: 1 - 0.5 * t)
    with pytest.raises(ValueError, match="predicts must be velocity on a GaussianPath"):
        FlowMatching(blurred, "data", target="batch").draw(x1)
