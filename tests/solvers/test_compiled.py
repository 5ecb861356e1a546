"""Steps under ``torch.compile``."""

import shutil

import pytest
import torch
from torch import Tensor

from pathline.grids import power
from pathline.solvers import rk4, solve
from problems import close, normal

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def flow(x: Tensor, t: Tensor, /) -> Tensor:
    return torch.sin(3 * x) - t.expand(len(x))[:, None] * x


def test_one_graph_serves_all_steps():
    torch._dynamo.reset()
    x, nodes = normal(5, 2, seed=0).float(), power(6, 1.5)
    wanted = solve(flow, x, nodes, rk4).x
    step = torch.compile(lambda x, t, s: rk4.step(flow, x, t, s), fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for t, s in zip(nodes[:-1].float(), nodes[1:].float(), strict=True):
            x = step(x, t, s)
    close(x, wanted, 1e-5)
    torch._dynamo.reset()
