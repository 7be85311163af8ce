"""Linear multistep methods: past predictions interpolated by a polynomial, which is integrated.

`lagrange_integrals` is that integral; `dpm_solver` and `unipc` use it under an exponential. Here it
is applied to the probability flow dx̄/dσ = ε. Methods whose coefficients ignore the spacing of the
levels are in `pndm`.
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax.diffusion.chain import Chain
from ddpm_jax.errors import UsageError
from ddpm_jax.samplers.linear import flow_weights, linear_sampler, visited
from ddpm_jax.samplers.loop import Sampler

MAX_ORDER = 4
# Gauss-Legendre: exact for polynomials of degree 63, and up to rounding under an exponential that
# falls by e^-60.
POINTS, POINT_WEIGHTS = np.polynomial.legendre.leggauss(32)


def lagrange_integrals(
    nodes: np.ndarray,
    start: float,
    end: float,
    density: Callable[[np.ndarray], np.ndarray] = np.ones_like,
) -> np.ndarray:
    """∫ density(u) l_j(u) du from start to end, l_j being 1 at node j and 0 at the others.

    l_j is the polynomial of least degree with these values.

    Args:
      nodes: where the integrand is known, [K], all different.
      start: the start of the interval.
      end: the end of the interval.
      density: a smooth function of an array; 1 by default.

    Returns:
      [K]: the weights of the K known values.
    """
    # The quadrature's points from [-1, 1] to the interval, and each l_j at all of them.
    points = start + (end - start) * (POINTS + 1) / 2
    basis = [
        np.prod([(points - other) / (node - other) for other in nodes if other != node], axis=0)
        * np.ones_like(points)
        for node in nodes
    ]
    return np.array(basis) @ (density(points) * POINT_WEIGHTS) * (end - start) / 2


def lms(chain: Chain, times: np.ndarray, *, order: int = 4, dtype=np.float32) -> Sampler:
    """x̄_{i+1} = x̄_i + Σ_j c_j ε[i-j], c_j = ∫ l_j(σ) dσ from σ_i to σ_{i+1}.

    Adams-Bashforth with steps of any size.

    The method of Crowson's k-diffusion (Hairer et al. 1993, section III.5). The order rises 1, 2,
    ... with the number of known ε; after that it is `order`, on the step to clean data as well,
    since the flow in σ is regular there. Because the first step is Euler's, the error falls
    asymptotically as N^-2, with a small constant.

    Args:
      chain: the process.
      times: the levels to visit, [N].
      order: the number of ε a step combines, 1 (Euler) to 4.
      dtype: of the tables.

    Raises:
      UsageError: another order.
    """
    if order not in range(1, MAX_ORDER + 1):
        raise UsageError(f"order is {order}: lms combines 1 to {MAX_ORDER} predictions.")
    schedule, levels = visited(chain, times, dtype)
    sigma = levels.sigma
    eps = np.zeros((len(sigma) - 1, order))
    for i in range(len(eps)):
        # The newest first, as the columns; fewer at the start, whose other columns stay 0.
        known = sigma[max(i + 1 - order, 0) : i + 1][::-1]
        eps[i, : len(known)] = lagrange_integrals(known, sigma[i], sigma[i + 1])
    return linear_sampler(schedule, flow_weights(levels.signal, eps))
