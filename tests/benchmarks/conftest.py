"""The benchmarks are scripts of one folder, which import each other by their bare names."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
