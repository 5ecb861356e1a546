r"""The kernel of a cell of points by its moments, and a bound on what they leave out.

In units of sigma a point $\alpha(c + \delta)$ is seen from x as $z - e$, $z = (x - \alpha c) / \sigma$ from its cell's
mean and $e = \alpha \delta / \sigma$, and Hermite polynomials generate its kernel

$$e^{-|z - e|^2 / 2} = e^{-|z|^2 / 2} \sum_m \mathrm{He}_m(z)\, e^m / m! = e^{-|z|^2 / 2}\, q(z),$$

so a cell enters with its moments up to `ORDER` p, and its sum of $e\,e^{-|z - e|^2 / 2}$ is $e^{-|z|^2 / 2} \nabla q$.
By Cramér's inequality, $|\mathrm{He}_n(z)| \le 1.09 \sqrt{n!}\,e^{z^2 / 4}$, the rest of the sum is at most
$1.09\,|e|^{p + 1} / \sqrt{(p + 1)!}\ e^{-(|z| - |e|)_+^2 / 4}$, and that of its gradient at most $1.19 \sqrt{p + 3}$ in
place of 1.09. Far from all points $|\mathrm{He}_n(z)| \le (|z| + \sqrt n)^n$ bounds the gradient's rest better, by
$\sqrt 2\,|e|^{p + 1} (|z| + |e| + \sqrt{p + 2})^{p + 2} / (p + 1)!\ e^{|z||e| - |z|^2 / 2}$, and the sum's by less than
its share of that.

Reference: Greengard and Strain, "The Fast Gauss Transform", SIAM J. Sci. Stat. Comput. 12 (1991).
"""

import math

import torch
from torch import Tensor

ORDER = 6
CRAMER = 1.09 / math.sqrt(math.factorial(ORDER + 1))
CRAMER_SLOPE = 1.19 * math.sqrt((ORDER + 3) / math.factorial(ORDER + 1))
_FAR = math.log(math.sqrt(2) / math.factorial(ORDER + 1) / CRAMER_SLOPE)


def log_rest(away: Tensor, ratio: Tensor) -> Tensor:
    r"""Log of what bounds the rest of a cell of mass and powers 1, in the gradient over `CRAMER_SLOPE`, from |z| on.

    The first bound is at most $|e|^{p + 1} e^{|e|^2 - |z|^2 / 5}$; the second falls with |z| from 4 on.
    """
    near = ratio.square() - away.square() / 5
    far = (ORDER + 2) * (away + ratio + math.sqrt(ORDER + 2)).log() + away * ratio - away.square() / 2 + _FAR
    return (ORDER + 1) * ratio.log() + torch.where(away < 4, near, torch.minimum(near, far))


def hermite(z: Tensor, ratio: Tensor) -> list[Tensor]:
    """ratio^n He_n(z) / n! for n up to `ORDER`."""
    step, square = ratio * z, ratio.square()
    values = [torch.ones_like(z), step]
    for n in range(1, ORDER):
        values.append(torch.addcmul(step * values[n], square, values[n - 1], value=-1).div_(n + 1))
    return values


def generated(
    moments: dict[tuple[int, ...], Tensor], hermite: list[list[Tensor]], tail: tuple[int, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    """q(z) from the Hermite polynomials of each z_k, and its gradient over the ratio; ``tail`` is the powers chosen."""
    *others, own = hermite
    room = ORDER - sum(tail)
    if not others:
        terms = [moments[(i, *tail)] for i in range(room + 1)]
        return _weighted(terms, own), [_weighted(terms[1:], own)]
    parts = [generated(moments, others, (i, *tail)) for i in range(room + 1)]
    values = [value for value, _ in parts]
    inner = [_weighted([slopes[k] for _, slopes in parts[:-1]], own) for k in range(len(others))]
    return _weighted(values, own), [*inner, _weighted(values[1:], own)]


def _weighted(terms: list[Tensor], powers: list[Tensor]) -> Tensor:
    total = torch.zeros_like(powers[0]) if not terms else terms[0] * powers[0]
    for term, power in zip(terms[1:], powers[1:], strict=False):
        total.addcmul_(term, power)
    return total
