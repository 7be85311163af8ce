"""Arrays -> PNG and GIF: sample grids, chains, curves. The only folder that imports matplotlib."""

import os
import sys

try:
    import matplotlib
# of MPLBACKEND: the backend of the notebook that starts a command may be missing where it runs
except ValueError:
    # The parts that were imported before the failure are attributes of a module that is gone.
    for _name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        del sys.modules[_name]
    _backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib  # noqa: F401  nothing here draws on the backend of the process

    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
