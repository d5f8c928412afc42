"""Record what the system computes today: python -m tests.golden.record [--overwrite]

    recordings.npz   "<case>/<array>" for every case of `cases`
    runs.json        the lines and results of whole runs, see `runs`, and the machine that all of this was recorded on

Record again only when learning is meant to change, and say so in the commit.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden import runs
from tests.golden.cases import cases, run

FOLDER = Path(__file__).parent
ARRAYS, RUNS = FOLDER / "recordings.npz", FOLDER / "runs.json"


def machine() -> dict[str, str]:
    """What the last bits depend on, beside the number of threads, which is 1."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    names = ("vendor_id", "cpu family", "model", "model name", "stepping")
    return {
        "processor": " ".join(fields.get(name, "") for name in names) or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def bfloat16_units() -> list[str]:
    """Units for bfloat16 that the processor has and a virtual machine does not hide, which round differently."""
    return sorted(name for name, there in torch.cpu.get_capabilities().items() if "bf16" in name and there)


def recorded_runs() -> dict[str, Any]:
    """What runs.json holds."""
    return json.loads(RUNS.read_text())


def recorded(name: str) -> dict[str, np.ndarray]:
    """The arrays of a case."""
    with np.load(ARRAYS) as file:
        return {key.rsplit("/", 1)[1]: file[key] for key in file.files if key.startswith(f"{name}/")}


def main(arguments: list[str] | None = None) -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overwrite", action="store_true", help="replace the recordings that are there")
    chosen = parser.parse_args(arguments)
    if ARRAYS.exists() and not chosen.overwrite:
        print(f"error: {ARRAYS} is there; give --overwrite if learning is meant to change", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    arrays = {f"{case.name}/{name}": array for case in cases() for name, array in run(case).items()}
    whole = {name: runs.run(name) for name in runs.RUNS}
    np.savez_compressed(ARRAYS, **arrays)
    RUNS.write_text(json.dumps({"machine": machine(), "bfloat16": bfloat16_units(), "runs": whole}, indent=1) + "\n")
    print(f"{len(arrays)} arrays in {ARRAYS}, {len(whole)} runs in {RUNS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
