"""Measures as a short table."""

from collections.abc import Mapping

from pathline.evaluation import MOST_SCORED
from pathline.metrics import LEAST, Measure

_NOTES = {
    "w2_sobol": "2-Wasserstein distance of low-discrepancy points, in the data's units",
    "w2": "2-Wasserstein distance, in standard deviations",
    "sliced_w2": "sliced 2-Wasserstein distance, in standard deviations",
    "energy_distance": "energy distance, in standard deviations; unbiased, so it may fall below 0",
    "c2st": "accuracy of a classifier told to tell them apart; 0.5 is best",
    "log_likelihood": "mean over held-out rows, nats; in the floor's place the true density's, where it is known",
    "floor_training": "least loss of any field on the training rows, per dimension",
    "loss_training": "flow-matching loss on the training rows, beside that floor",
    "excess_training": "what the loss has above the floor: the squared distance to the exact field of the rows",
    "r2_training": "share of that field's variance that the model explains",
    "floor_law": "least loss of any field under the law of the data, per dimension",
    "loss_law": "flow-matching loss under the law, beside that floor",
    "excess_law": "what the loss has above the floor: the squared distance to the law's exact field",
    "r2_law": "share of that field's variance that the model explains",
    "loss_held_out": "flow-matching loss on held-out rows, per dimension",
    "distance_total": "Wasserstein distance of samples to data, of which are",
    "distance_sample": "the finite sample's,",
    "distance_network": "the network's,",
    "distance_solver": "and the solver's at this number of calls",
    "model_calls": "per sample",
    "training_steps": "",
    "training_seconds": "",
}


def measures_table(measures: Mapping[str, Measure]) -> str:
    """Value, noise floor, standard error and number of rows of every measure."""
    lines = [f"{'':<17}{'value':>11}{'floor':>11}{'se':>11}{'n':>8}"]
    for name, measure in measures.items():
        numbers = "".join(_number(value) for value in (measure.value, measure.floor, measure.se))
        lines.append(f"{name:<17}{numbers}{measure.n:>8}  {_note(name, measure)}".rstrip())
    return "\n".join(lines)


def _note(name: str, measure: Measure) -> str:
    few = name in ("w2", "sliced_w2") and measure.n < LEAST
    return _NOTES.get(name, "") + (f"; no standard error below {LEAST} rows" if few else "")


def left_out(measures: Mapping[str, Measure], rows: int) -> str:
    """One line where the log-likelihood is not over all rows that were scored, else nothing."""
    scored = min(rows, MOST_SCORED)
    out = scored - (measures["log_likelihood"].n if "log_likelihood" in measures else 0)
    why = "off a constant, integer or positive column"
    return f"log_likelihood leaves out {out:,} of {scored:,} rows: their log_prob is -inf, {why}" if out else ""


def _number(value: float | None) -> str:
    if value is None:
        return f"{'-':>11}"
    return f"{value:>11,.0f}" if value >= 1000 else f"{value:>11.3g}"
