"""The floor of a model's training is over the times that its objective draws."""

import torch

from pathline.data.toy import toy
from pathline.diagnosis import reference_of
from pathline.objectives import FlowMatching
from pathline.paths import AffinePath
from pathline.schedules import linear
from pathline.transforms import Identity


def test_the_times_of_a_reference_depend_on_the_prediction() -> None:
    path = AffinePath(linear())
    for predicts in ("velocity", "data"):
        known = reference_of(path, Identity(), None, None, toy("gaussian"), predicts=predicts)
        assert known is not None
        last = max(float(node.point.t.max()) for node in known.nodes)
        high = FlowMatching(path, predicts).time_range[1]
        assert high - 0.02 < last < high
        assert torch.equal(known.nodes[0].point.t, known.nodes[0].point.t[:1].expand(128))
