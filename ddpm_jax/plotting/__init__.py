"""Arrays -> PNG and GIF: grids, chains, curves. The only package that imports matplotlib."""

import os
import sys

try:
    import matplotlib
# of MPLBACKEND: a notebook's backend may be missing for the command that it starts
except ValueError:
    # Submodules imported before the failure belong to a module object that no longer exists.
    for _name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[_name]
    _backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib  # noqa: F401  nothing here draws on the backend of the process

    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
