"""Shared by all benchmarks: interleaved timing, speed of matrix products, peak memory, machine facts, tables."""

import multiprocessing
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from RATE_model.cli.limits import writable_file
from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_json, atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "benchmarks" / "README.md"

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}

# Size of the square matrices whose product measures the machine's speed; large enough to hide overhead.
MATRIX_SIZE = 2048


def interleave(
    candidates: Mapping[str, Callable[[], float | None]], *, rounds: int, report: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Time candidates in turn (A B C, A B C, ...), so that other load on the machine affects all of them.

    Args:
        candidates: by name; each call is timed, unless it returns its own seconds.
        rounds: timed rounds, after one untimed round.
        report: called after every round.

    Returns:
        Seconds of every timed call, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            own = run()
            if number:
                seconds[name].append(time.perf_counter() - start if own is None else own)
        report(f"  round {number} of {rounds}" if number else "  warmed up")
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, minimum and all of the timings."""
    return {"median_s": median(seconds), "min_s": min(seconds), "seconds": list(seconds)}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Speed-up: the median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def matrix_product(precision: str, size: int) -> Callable[[], float]:
    """A candidate for `interleave`: seconds of one product of two random `(size, size)` matrices, the best of three."""
    a, b = (torch.randn(size, size).to(DTYPES[precision]) for _ in range(2))

    def run() -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - start)
        return min(times)

    return run


def product_flops(size: int) -> int:
    """Floating-point operations of the product of two `(size, size)` matrices."""
    return 2 * size**3


def memory_mib() -> tuple[float, float] | None:
    """Resident memory of this process in MiB: now, and the most since it started. None without /proc.

    Not `getrusage`: its maximum in a new process starts at the size of the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    now, peak = (int(re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a new process, whose memory nothing else has used.

    Returns:
        The function's result; None if the process was killed, for example because memory ran out.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def set_threads(threads: int) -> None:
    """Set torch's number of threads; 0: keep torch's default."""
    if threads:
        torch.set_num_threads(threads)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Another number of torch's threads inside; 0: the same."""
    before = torch.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_agreement(what: str, difference: float, allowed: float) -> float:
    """The difference, if it is at most `allowed`: only programs that compute the same are compared.

    Raises:
        RuntimeError: they differ.
    """
    if not difference <= allowed:  # NaN is refused too
        raise RuntimeError(
            f"{what} differ by {difference:.3g} from the plain implementation; at most {allowed:.3g} is allowed"
        )
    return difference


def machine_facts() -> dict[str, Any]:
    """Facts about the machine that readers of the figures need, without host or user names."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
    }


def _cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def machine_line(machine: Mapping[str, Any], gflops: Mapping[str, float]) -> str:
    """The line above every table; ``gflops`` are measured speeds of matrix products, if any."""
    speeds = ", ".join(f"{'fp32' if name == '32' else name} {value:.0f} GFLOP/s" for name, value in gflops.items())
    commit, _, dirty = (machine["commit"] or "unknown").partition("-")
    count = machine["torch_threads"]
    return (
        f"{machine['cpu']}, {count} thread{'s' * (count != 1)}, torch {machine['torch']}, {machine['date']}, "
        f"commit {commit[:12]}{' with changes' if dirty else ''}." + (f" Matrix products: {speeds}." if speeds else "")
    )


def publish(name: str, text: str, result: Mapping[str, Any], *, output: Path | None, update_readme: bool) -> None:
    """Print the text, write the JSON, and put the text between the marks of this benchmark in README.md."""
    print(f"\n{text}")
    if output is not None:
        atomic_write_json(output, result)
    if update_readme:
        atomic_write_text(README, between_marks(README.read_text(encoding="utf-8"), name, text))


def between_marks(page: str, name: str, text: str) -> str:
    """The page with the text between `<!-- NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        UserError: the page lacks the marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        raise UserError(f"--update_readme: {README} has no lines '{begin}' and '{end}' for the figures")
    return page.partition(begin)[0] + f"{begin}\n\n{text}\n\n{end}" + page.partition(end)[2]


def check_output(output: Path | None) -> None:
    """Raise `UserError`, before measuring, if the figures cannot be written."""
    writable_file(output=output)
