r"""Exact marginal fields, known in closed form wherever the data law is a finite mixture.

Given x_t = x, component i has posterior weight $p_i \propto w_i\,\mathcal N_i(x)$, and with the component's own
velocity $v_i$ and score $g_i$ at x

$$\log p_t = \log \sum_i w_i \mathcal N_i, \quad u_t = \mathbb E[v_i], \quad \nabla \log p_t = \mathbb E[g_i],
\quad \nabla \cdot u_t = \mathbb E[\nabla \cdot v_i + \Delta g_i \cdot \Delta v_i]
- \mathbb E[\Delta g_i] \cdot \mathbb E[\Delta v_i],$$

expectations under $p_i$, differences $\Delta$ taken from one reference component, so that a covariance does not
drown in the means that it is about. One pass over chunks of components with a running softmax gives all of them, so
memory is O(batch x chunk). All arithmetic is float64, but for float32 data asked about in float32, which
`pathline.fields.exact.attention` answers as precisely as float32 can say. So x may be of any floating-point dtype,
whatever that of the data, and results come back in the dtype of x; t, weights and labels may be of any real dtype.
Sources other than a standard normal, and bridges, are in `pathline.fields.exact.pairs`.

Reference: Lipman et al., "Flow Matching for Generative Modeling", arXiv:2210.02747; Bertrand et al., "On the
closed-form of flow matching: generalization does not arise from target stochasticity", arXiv:2506.03719.
"""

from pathline.fields.exact.empirical import EmpiricalField
from pathline.fields.exact.gaussians import GaussianMixtureField

__all__ = ["EmpiricalField", "GaussianMixtureField"]
