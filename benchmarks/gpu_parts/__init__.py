"""The parts of `benchmarks/gpu.py`, each a process of its own: `python -m gpu_parts NAME ...`.

A part is a function measure(plan, save). It hands everything it knows to `save` as often as it
knows more, so that a part that is stopped has lost nothing. `plan` is its input, `networks`
are the networks that are measured, `budget` says who gets how much time, and `table` what is shown.
"""
