"""Train state, step, optimiser, EMA, objectives and the loop that ties them together.

The step does not depend on what it trains: it takes an `Objective`.
"""
