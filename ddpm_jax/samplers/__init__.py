"""Reverse processes: each a table of coefficients and a step; `loop.sample` scans any of them.

Belongs here: samplers, and wrappers Denoiser -> Denoiser. Does not: networks, checkpoints, image
files, and a second loop over a chain.
"""
