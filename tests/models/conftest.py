"""Shared by the tests of networks."""

import jax.extend


def equations(jaxpr):
    """Yield every equation of a jaxpr and of those within it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from equations(inner)
