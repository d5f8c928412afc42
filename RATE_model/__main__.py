"""`python3 -m RATE_model`: the version, and the commands of the package."""

import argparse
import platform
from importlib.metadata import version

import RATE_model

COMMANDS = {
    "train": "train on your own data",
    "evaluate": "play episodes with a run made by `train`",
    "sweep": "train with several values of flags and several seeds, locally or on a cluster",
    "plots": "plot learning curves of several runs",
    "diagnose": "measure what a run's memory knows, and how much it copies its past actions",
    "protocol": "test whether and how long a run's agent remembers",
    "report": "write an HTML page with curves, verdict and episode player",
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
    parser.add_argument("--version", action="store_true", help="print versions for bug reports, and exit")
    if parser.parse_args().version:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "gymnasium", "h5py"))
        print(f"rate-memory {RATE_model.__version__} (Python {platform.python_version()}, {libraries})")
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
