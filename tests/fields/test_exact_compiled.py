"""Exact velocities in one graph of ``torch.compile``."""

import shutil

import pytest
import torch

from pathline.fields import EmpiricalField, GaussianMixtureField
from pathline.paths import AffinePath
from pathline.schedules import linear
from problems import close, curved_path, normal

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
PATH, FEW, MANY = AffinePath(linear()), normal(7, 2, seed=0), normal(20_000, 2, seed=0, dtype=torch.float32)
FIELDS: dict[str, EmpiricalField | GaussianMixtureField] = {
    "isotropic": GaussianMixtureField(PATH, FEW, torch.full((7,), 0.3)),
    "full": GaussianMixtureField(PATH, FEW, torch.tensor([[0.3, 0.1], [0.1, 0.2]]).expand(7, 2, 2)),
    "points": EmpiricalField(PATH, FEW),
    "many points": EmpiricalField(PATH, MANY),
    "many points to a tolerance": EmpiricalField(PATH, MANY, rtol=1e-2),
    "gaussian path": EmpiricalField(curved_path(), FEW),
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_velocity_is_one_graph(field: EmpiricalField | GaussianMixtureField):
    torch._dynamo.reset()
    x, compiled = normal(5, 2, seed=1, dtype=torch.float32), torch.compile(field, fullgraph=True)
    for t in (torch.tensor(0.5), torch.linspace(0.1, 0.9, 5)):
        close(compiled(x, t), field(x, t), 1e-2 if getattr(field, "rtol", None) else 1e-6)
    torch._dynamo.reset()
