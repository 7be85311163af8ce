"""Arrays -> PNG and GIF: grids, chains, curves. The only package that imports matplotlib.

Its functions import matplotlib when they draw: that takes as long as importing JAX, and a command
draws after its first result, or not at all.
"""

import os
import sys

if "MPLBACKEND" in os.environ:
    try:
        import matplotlib
    # a notebook's backend may be missing for the command that it starts
    except ValueError:
        # Submodules imported before the failure belong to a module object that no longer exists.
        for _name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[_name]
        _backend = os.environ.pop("MPLBACKEND")
        import matplotlib  # noqa: F401  nothing here draws on the backend of the process

        os.environ["MPLBACKEND"] = _backend
