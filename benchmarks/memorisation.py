"""Twenty networks trained to convergence on 50 points, told from twenty that learned the law: AUCs."""

import torch
from common import arguments, finish, machine
from torch import Tensor

import pathline as pl
from pathline.data.toy import toy
from pathline.diagnostics import Evidence, FieldGap, field_gap, memorisation

PATH = pl.AffinePath(pl.schedules.linear())
LAWS = ("annulus", "moons", "eight-gaussians", "two-spirals")
ROWS = 50


def one(seed: int, planted: bool, steps: int) -> tuple[Evidence, FieldGap]:
    """The evidence on one model, which has seen 50 rows alone, or a stream of the law."""
    law, generator = toy(LAWS[seed % len(LAWS)]), torch.Generator().manual_seed(seed)
    train, held_out = law.sample(ROWS, generator), law.sample(4 * ROWS, generator)
    torch.manual_seed(seed)
    loss = pl.FlowMatching(PATH, times=pl.objectives.stratified)
    data = train if planted else law.sample
    recipe = pl.Recipe(steps=steps, batch_size=256, learning_rate=5e-3, seed=seed)
    model = pl.fit(pl.nets.MLP(2, 128, 4), data, loss, recipe=recipe)

    def field(x: Tensor, t: Tensor, /) -> Tensor:
        return model.field(x.float(), t.float()).to(x)

    with torch.no_grad():
        gap = field_gap(field, PATH, train.double(), held_out.double(), generator=generator)
        crowd = memorisation(model.sample(400, generator=generator), train, held_out, generator=generator)
    return Evidence(crowd, gap), gap


def auc(positive: list[float], negative: list[float]) -> float:
    """How often a planted one scores above an honest one, ties by half."""
    wins = [(a > b) + 0.5 * (a == b) for a in positive for b in negative]
    return sum(wins) / len(wins)


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    count, steps = (3, 600) if options.quick else (20, 2500)
    print(machine())
    scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    verdicts: dict[bool, list[str]] = {True: [], False: []}
    for planted in (True, False):
        for seed in range(count):
            evidence, gap = one(seed, planted, steps)
            assert evidence.samples is not None
            scores[planted].append((-gap.ratio, -evidence.samples.share))
            verdicts[planted].append(evidence.verdict)
            print("planted" if planted else "honest", seed, evidence)
    figures = {
        f"auc_{name}": auc(*([score[i] for score in scores[planted]] for planted in (True, False)))
        for i, name in enumerate(("field", "samples"))
    }
    figures["verdicts_planted"] = verdicts[True].count("memorises") / count
    figures["verdicts_honest"] = verdicts[False].count("memorises") / count
    finish("memorisation", figures, options.check)


if __name__ == "__main__":
    main()
