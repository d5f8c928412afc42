"""`python3 -m RATE_model`: the version, and the commands of the package."""

import argparse
import platform
from importlib.metadata import version

import RATE_model

COMMANDS = {
    "train": "train on data of your own",
    "evaluate": "play episodes with a run that `train` made",
    "sweep": "train with several values of flags and seeds, here or on a cluster",
    "plots": "draw learning curves of several runs",
    "diagnose": "say what a run's memory knows, and whether it copies its past actions",
    "protocol": "say what a run's memory was shown to hold",
    "report": "make one page with curves, verdict and episode player",
    "original": "convert published checkpoints",
}


def main() -> None:
    """Print the version, or the commands."""
    parser = argparse.ArgumentParser(
        prog="python3 -m RATE_model",
        description="RATE: offline reinforcement learning for agents with memory.",
        epilog="commands, each with --help:\n"
        + "\n".join(f"  python3 -m RATE_model.{name:<10} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions that a bug report needs, and exit")
    if parser.parse_args().version:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "gymnasium", "h5py"))
        print(f"rate-memory {RATE_model.__version__} (Python {platform.python_version()}, {libraries})")
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
