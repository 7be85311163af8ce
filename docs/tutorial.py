"""Runs the code of tutorial.md, block after block, in one namespace; draws its pictures.

    python docs/tutorial.py            prints what the blocks print
    python docs/tutorial.py --write    also puts it back into tutorial.md, below each block

So every number in the text is one that the code printed. The first block is the settings; `run`
can change them, which the test does.
"""

import argparse
import contextlib
import io
import pathlib
import re
from collections.abc import Mapping
from typing import Any

TUTORIAL = pathlib.Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?P<output>\n```text\n.*?```\n)?", re.DOTALL)


def run(text: str, settings: Mapping[str, Any] | None = None) -> tuple[list[str], dict[str, Any]]:
    """Executes the Python blocks of a Markdown text.

    Args:
      text: Markdown.
      settings: replaces names that the first block defines.

    Returns:
      What each block printed, and the namespace that they leave.

    Raises:
      KeyError: a setting that the first block does not define.
    """
    outputs, namespace = [], {"__name__": "tutorial"}
    for number, block in enumerate(BLOCK.finditer(text)):
        line = text.count("\n", 0, block.start("code"))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Empty lines in front, so that a traceback names the line of the Markdown file.
            exec(compile("\n" * line + block["code"], str(TUTORIAL), "exec"), namespace)
        if number == 0:
            for name, value in (settings or {}).items():
                namespace[name]  # a KeyError says that the text no longer has this setting
                namespace[name] = value
        outputs.append(printed.getvalue())
    return outputs, namespace


def with_outputs(text: str, outputs: list[str]) -> str:
    """The text with what each block printed below it, in place of what stood there."""
    remaining = iter(outputs)

    def replace(block: re.Match) -> str:
        output = next(remaining)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the output into tutorial.md")
    write = parser.parse_args().write
    text = TUTORIAL.read_text()
    outputs, _ = run(text)
    print("\n".join(filter(None, outputs)))
    if write:
        TUTORIAL.write_text(with_outputs(text, outputs))


if __name__ == "__main__":
    main()
