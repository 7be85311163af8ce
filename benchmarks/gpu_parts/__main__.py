"""Runs one part: `python -m gpu_parts NAME --out DIR --deadline SECONDS ...`, from benchmarks/.

The record is written again whenever the part knows more. Exit code 1 where something is wrong, with
the sentence, or the end of the traceback, as the record's `failed`.
"""

import argparse
import importlib
import pathlib
import sys
import traceback

from train_run import Failed

from gpu_parts.budget import PARTS
from gpu_parts.plan import Plan, Record, Skipped, record_path, write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--small", action="store_true")
    flags = parser.parse_args()
    plan = Plan(flags.small, flags.folder, flags.out, flags.data, flags.peer, flags.deadline)
    known: Record = {}

    def save(record: Record) -> None:
        known.update(record)
        write_json(record_path(flags.part, flags.out), known)

    (part,) = (part for part in PARTS if part.name == flags.part)
    try:
        # Only this part's imports: another may need what is not installed here.
        getattr(importlib.import_module(f"gpu_parts.{part.module}"), part.function)(plan, save)
    except Skipped as why:
        save({"skipped": str(why)})
    except Failed as why:
        save({"failed": str(why)})
        return 1
    except Exception as error:
        traceback.print_exc()
        save({"failed": f"{type(error).__name__}: {str(error)[:500]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
