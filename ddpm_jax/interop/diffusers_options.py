"""Options of the U-Nets of diffusers: what their values mean here, and checks of their types."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from ddpm_jax.errors import UsageError

TIME_EMBEDDINGS = {  # (flip_sin_to_cos, freq_shift)
    (True, 0): "cos_sin",
    (True, 1): "cos_sin_inclusive",
    (False, 0): "sin_cos_exclusive",
    (False, 1): "sin_cos",
}
SCALE_SHIFTS = {"default": False, "scale_shift": True}
PADDINGS = {0: "end", 1: "both"}
SWISH = ("silu", "swish")  # of act_fn
# what training adds to the config of an average of weights
OF_AVERAGES = {
    *("decay", "inv_gamma", "min_decay", "min_value", "optimization_step", "power"),
    *("update_after_step", "use_ema_warmup"),
}
LARGEST = 1 << 16  # of a width, a side, a number of classes
BLOCKS = 32  # of a level, or in a transformer: Stable Diffusion XL has 10
LEVELS = 10


class Options(NamedTuple):
    """The options of a config, each read with a check of its type."""

    values: Mapping[str, Any]
    owner: str  # the class that has them, for messages

    def whole(self, name: str, largest: int = LARGEST) -> int:
        """Return a whole number in 1..largest."""
        return self._whole(name, self.values[name], largest)

    def whole_numbers(self, name: str, largest: int = LARGEST) -> list[int]:
        """Return a list of these, one for each of at most LEVELS levels."""
        values = self.values[name]
        if not isinstance(values, list | tuple) or not 1 <= len(values) <= LEVELS:
            raise self.unsupported(
                name, f"a list of whole numbers, one for each of 1 to {LEVELS} levels"
            )
        return [self._whole(name, value, largest) for value in values]

    def size(self, name: str) -> tuple[int, int] | None:
        """Return a height and a width, given as one number or as two; None where there is none."""
        value = self.values[name]
        if value is None:
            return None
        sides = value if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2:
            raise self.unsupported(name, "a height and a width")
        height, width = (self._whole(name, side, LARGEST) for side in sides)
        return height, width

    def number(self, name: str) -> float:
        """Return a number."""
        value = self.values[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.unsupported(name, "a number")
        return float(value)

    def equal(self, name: str, largest: int = LARGEST) -> int:
        """Return a whole number, the same for all levels if there is one for each."""
        values = self.values[name]
        if isinstance(values, list | tuple) and len(set(self.whole_numbers(name, largest))) > 1:
            raise self.unsupported(name, "the same for all levels")
        first = values[0] if isinstance(values, list | tuple) else values
        return self._whole(name, first, largest)

    def per_level(self, name: str, kind: type, levels: int, largest: int = LARGEST) -> Any:
        """Return a value for all levels, or a tuple of one for each; numbers in 1..largest."""
        given = self.values[name]
        values = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not all(type(value) is kind for value in values) or (
            isinstance(given, list | tuple) and len(values) != levels
        ):
            what = "true or false" if kind is bool else "a whole number"
            raise self.unsupported(name, f"{what}, or {levels} of these")
        if kind is int:
            for value in values:
                self._whole(name, value, largest)
        return values if isinstance(given, list | tuple) else given

    def choice(self, name: str, table: Mapping[Any, Any], further: str = "") -> Any:
        """Return what the table has for an option, or for a pair of options."""
        values = [self.values[option] for option in (name, further) if option]
        key = tuple(values) if further else values[0]
        if not all(isinstance(value, Hashable) for value in values) or key not in table:
            known = ", ".join(map(str, table))
            both = f"{name}, {further}" if further else name
            raise self._refusal(both, key, f"one of {known}")
        return table[key]

    def blocks(self, name: str, known: tuple[str, ...], levels: int) -> list[str]:
        """Return the kind of block on each level."""
        kinds = self.values[name]
        is_list = isinstance(kinds, list | tuple) and len(kinds) == levels
        if not is_list or not all(kind in known for kind in kinds):
            raise self.unsupported(name, f"{levels} of {', '.join(known)}")
        return list(kinds)

    def unsupported(self, name: str, wanted: str) -> UsageError:
        """Return the refusal of the value of an option."""
        return self._refusal(name, self.values[name], wanted)

    def _whole(self, name: str, value: Any, largest: int) -> int:
        if type(value) is not int or not 1 <= value <= largest:
            raise self._refusal(name, value, f"a whole number in 1..{largest}")
        return value

    def _refusal(self, name: str, value: Any, wanted: str) -> UsageError:
        return UsageError(
            f"{name} of the {self.owner} is {plain(value)!r}, but this network needs {wanted} "
            "there: choose a model that has it."
        )


def plain(value: Any) -> Any:
    """Return a tuple as the list that JSON has, anything else as it is."""
    return list(value) if isinstance(value, tuple) else value


def key_of(table: Mapping[Any, Any], wanted: Any) -> Any:
    """Return the first key whose value is the one that is wanted."""
    return next(key for key, value in table.items() if value == wanted)


def multiples(widths: Sequence[int]) -> tuple[float, ...]:
    """Return the channels of each level in units of the first; whole numbers where they are."""
    first = widths[0]
    return tuple(width / first if width % first else width // first for width in widths)
