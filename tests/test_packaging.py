"""The package's metadata, pinned versions, and forbidden content of the repository."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = tuple(PROJECT["optional-dependencies"])

# Only installed by an extra.
ENVIRONMENT_PACKAGES = (
    "vizdoom", "minigrid", "ale_py", "mujoco", "stable_baselines3", "dm_control", "labmaze", "memory_maze", "gym",
)  # fmt: skip
# Slow to import, and only needed by runs that log or plot.
LATE_PACKAGES = ("wandb", "matplotlib")
# Which GPU libraries are right depends on the machine; torch pins them itself.
UNPINNED_PREFIXES = ("nvidia", "cuda", "triton")

# Written with character classes, so that this file does not match itself.
FORBIDDEN = {
    "the path of somebody's machine": rb"(?<![\w.])/(?:[w]ork|[r]oot|([h]ome|[U]sers)/\w+|opt/[p]ypi|tmp/[d]ev)\b",
    "the address of a package index": rb"https?://(?:\w+\.)*[p]ypi\b|[i]ndex-url|[f]ind-links",
    "a wandb key": rb"(?i)[w](?:andb)_?(?:api)?(?:_?key)?\W{0,8}[0-9a-f]{40}",
}


def read_constraints() -> dict[str, str]:
    """Pinned version of every distribution in constraints.txt, by canonical name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines if line]
    assert all(pins), "a line of constraints.txt is not `name==version` without a local suffix"
    names = [canonicalize_name(pin[1]) for pin in pins]
    assert len(names) == len(set(names)), "a distribution is pinned twice"
    return {name: pin[2] for name, pin in zip(names, pins, strict=True)}


def requirements_of(extra: str | None) -> list[Requirement]:
    """Direct requirements of the core (None) or of one extra; a mention of the project's own extras is resolved."""
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = []
    for requirement in map(Requirement, listed):
        if canonicalize_name(requirement.name) == PROJECT["name"]:
            found += [inner for name in sorted(requirement.extras) for inner in requirements_of(name)]
        else:
            found.append(requirement)
    return found


def installed_closure(requirements: list[Requirement]) -> set[str]:
    """Canonical names of all installed distributions that the requirements lead to."""
    names: set[str] = set()
    seen: set[tuple[str, str]] = set()
    queue = [(requirement.name, extra) for requirement in requirements for extra in {"", *requirement.extras}]
    while queue:
        name, extra = queue.pop()
        if (canonicalize_name(name), extra) in seen:
            continue
        seen.add((canonicalize_name(name), extra))
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:  # another extra's, not installed here
            continue
        names.add(canonicalize_name(name))
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                queue += [(requirement.name, inner) for inner in {"", *requirement.extras}]
    return names


def committed_files() -> list[Path]:
    """Paths of the files in git, or a skip where the sources came without it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # A checkout that belongs to another user is normal in a container; git refuses it unless told.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    files = [ROOT / name for name in listed.split("\0") if name]
    files = [path for path in files if path.is_file()]
    assert files
    return files


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded by a new interpreter after running `code` in the repository root."""
    report = "; import sys; print('|'.join(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + report], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split("|"))


def test_all_has_every_extra_that_a_user_needs():
    of_all = {requirement.name for requirement in requirements_of("all")}
    for extra in set(EXTRAS) - {"faiss", "all", "dev", "docs", "oracles"}:
        assert {requirement.name for requirement in requirements_of(extra)} <= of_all, f"all leaves out {extra}"


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_every_requirement_is_pinned_within_its_range(extra):
    pins = read_constraints()
    requirements = requirements_of(extra)
    assert requirements
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement} excludes {pins[name]}"


def test_transitive_dependencies_are_pinned():
    pins = read_constraints()
    installed = installed_closure(requirements_of(None) + requirements_of("dev") + requirements_of("all"))
    assert {"torch", "numpy", "pytest"} <= installed
    missing = {name for name in installed if not name.startswith(UNPINNED_PREFIXES)} - set(pins)
    assert not missing, f"not in constraints.txt: {sorted(missing)}"


def test_neither_a_gpu_library_nor_the_old_gym_is_pinned():
    assert not [name for name in read_constraints() if name == "gym" or name.startswith(UNPINNED_PREFIXES)]


def test_conda_environment_installs_everything_with_the_pins():
    dependencies = yaml.safe_load((ROOT / "conda_env.yml").read_text())["dependencies"]
    assert "python=3.11" in dependencies
    assert {"pip": ["-c constraints.txt", "-e .[all,dev]"]} in dependencies


def test_importing_the_package_is_light():
    loaded = modules_after("import RATE_model")
    assert "RATE_model" in loaded
    assert not loaded & {*ENVIRONMENT_PACKAGES, *LATE_PACKAGES}


def test_no_module_needs_an_environments_packages():
    packages = [path.parent.name for path in sorted(ROOT.glob("*/__init__.py")) if path.parent.name != "tests"]
    assert {"RATE_model", "TMaze_new", "MinigridMemory", "MuJoCo", "VizDoom", "MemoryMaze", "Atari"} <= {*packages}
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.stem != "__main__"]
    loaded = modules_after(f"import importlib; [importlib.import_module(name) for name in {names!r}]")
    assert {*packages} <= loaded
    assert not loaded & {*ENVIRONMENT_PACKAGES, "wandb"}


def run_make(*arguments: str) -> subprocess.CompletedProcess:
    """Run make without the variables of a make that runs these tests."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKEOVERRIDES")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_lists_its_targets():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    shown = run_make().stdout
    assert re.findall(r"^  make (\S+)", shown, re.MULTILINE) == phony


def test_make_refuses_a_python_that_is_too_old(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -m ] && mkdir "$3"\n')  # `-c CHECK` fails, `-m venv FOLDER` would work
    old.chmod(0o755)
    done = run_make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    assert "error: Python 3.11, 3.12 or 3.13 is needed" in done.stderr and str(old) in done.stderr
    assert not (tmp_path / "venv").exists()


def test_continuous_integration_script_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_holds(what):
    pattern = re.compile(FORBIDDEN[what])
    matches = {str(path.relative_to(ROOT)): pattern.search(path.read_bytes()) for path in committed_files()}
    found = {name: match[0] for name, match in matches.items() if match}
    assert not found, f"{what}: {found}"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("the path of somebody's machine", b"data = '/%s/main/x.h5'" % b"work"),
        ("the path of somebody's machine", b"see /%s/ada/runs" % b"home"),
        ("the address of a package index", b"https://%s.org/simple" % b"pypi"),
        ("a wandb key", b"wandb_api: " + 5 * b"0123abcd"),
    ],
)
def test_forbidden_patterns_match_their_examples(what, text):
    assert re.search(FORBIDDEN[what], text)


def test_wandb_template_is_empty():
    def leaves(value):
        return [leaf for inner in value.values() for leaf in leaves(inner)] if isinstance(value, dict) else [value]

    text = (ROOT / "wandb_config.yaml").read_text()
    values = leaves(yaml.safe_load(text))
    assert values and all(value in (None, "") for value in values)
    assert not re.search(r"[0-9a-fA-F]{40}", text)
