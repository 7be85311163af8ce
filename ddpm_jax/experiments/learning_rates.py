"""The text of `optimizer.groups`: learning rates of parts of a network."""

from ddpm_jax import numerals
from ddpm_jax.errors import UsageError

_LARGEST = 1e6  # factor


def parse_groups(text: str) -> tuple[tuple[str, float], ...]:
    """Parse "class_embedding=10, down_*=0.1": pairs of a pattern and a factor.

    Args:
      text: a pattern is that of a path with "*", "?" and "[...]", where "*" also stands for "/", or
        of the beginning of one, up to a "/"; a factor is at least 0.

    Raises:
      UsageError: it is something else.
    """
    groups = []
    for part in filter(None, map(str.strip, text.split(","))):
        pattern, _, factor = map(str.strip, part.partition("="))
        try:
            number = numerals.number(factor, valid=lambda x: 0 <= x <= _LARGEST)
        except ValueError:
            number = None
        if number is None or not pattern:
            raise UsageError(
                f"optimizer.groups has {part!r}: give PATTERN=FACTOR with a factor in "
                f"0..{_LARGEST:.0f}, as in class_embedding=10."
            )
        groups.append((pattern, number))
    return tuple(groups)
