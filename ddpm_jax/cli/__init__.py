"""The commands: flags to settings, a config to its parts, and running them.

Only this package sees flags.
"""

import os
import re
import sys

try:
    import jax  # noqa: F401
# JAX reads its environment variables when it is imported, and so before a command runs
except ValueError as error:
    _named = re.search(r"jax_\w+", str(error), re.IGNORECASE)
    _all = ", ".join(sorted(name for name in os.environ if name.startswith("JAX_")))
    _names = _named[0].upper() if _named else f"one of {_all}"
    print(
        f"error: JAX cannot be imported ({error}): unset {_names}, or set it to what JAX allows.",
        file=sys.stderr,
    )
    raise SystemExit(2) from None
