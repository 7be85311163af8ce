"""Train state, step, optimiser, EMA, mapping over devices, checkpoints, metrics and the loop that
ties them together.

The step knows nothing of which diffusion it trains: it is handed an `Objective`.
"""
