"""Plot learning curves of runs, grouped by name, from their metrics.jsonl.

    python3 -m RATE_model.plots RUN_DIR ... --metric validation_loss eval_return --output curves.png

A RUN_DIR is a run, or a folder with runs anywhere inside. Runs whose names differ only in the seed form a group, drawn
as its mean with the 95 % bootstrap interval over seeds, up to the step that all of its runs have reached.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from RATE_model.cli.limits import writable_file
from RATE_model.cli.options import ArgumentParser, exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.plots.seeds import find_runs, plot_seeds


def parser() -> ArgumentParser:
    """The command's flags."""
    found = ArgumentParser(
        prog="python3 -m RATE_model.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="runs, or folders with runs in them")
    found.add_argument("--metric", nargs="+", default=["validation_loss"], help="names in metrics.jsonl")
    found.add_argument("--output", type=Path, default=Path("curves.png"), help="the figure, a .png file")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the curves."""
    with exit_on_user_error():
        asked = parser().parse_args(argv)
        if asked.output.suffix.lower() != ".png":
            raise UserError(f"--output {asked.output}: figures are PNG; give a name that ends in .png")
        writable_file(output=asked.output)
        groups = find_runs(asked.runs)
        path = plot_seeds(groups, asked.output, asked.metric)
        print(
            f"{path}: "
            + "; ".join(f"{label}, {len(runs)} seed{'s' * (len(runs) > 1)}" for label, runs in groups.items())
        )


if __name__ == "__main__":
    main()
