"""Find misspelt words, and phrases that read as translated: `make lint` runs it over the whole repository.

    python3 tools/check_wording.py [FILE ...]

Prints file, line and what to write instead; exits with 1 if it finds anything.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = (".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".cff", ".sh")
# Files with such phrases on purpose: this list, recorded losses, and aliases of flags.
SKIPPED = ("tools/check_wording.py", "tests/golden/", "RATE_model/cli/aliases.py", "CHANGELOG.md")
# Pattern -> what a native engineer would write.
BANNED = {
    r"led astray": "with perturbations (DART)",
    r"\blives? on (its|their|the|items)": "depends on",
    r"sizes? that makes? no model|make no model": "invalid model sizes",
    r"\bso many\b": "N, or the number itself",
    r"(?<!there )\bis no (?!longer|more|less|different|need|doubt|way|such|one|\w+er\b)\w+": "is not a ...",
    r"\bare others\b": "differ",
    r"\banew\b": "again",
    r"\bpassed over\b": "skipped",
    r"\bbehind (every|each|a call|an? evaluation|the (last|first|test|end)|it\b|them\b|so)": "after",
    r"\bgoing on with\b": "resuming from, or continuing with",
    r"\b(any|no)body waits\b": "too many (at most N)",
    r"what was chosen how": "how settings were selected",
    r"\b(in|on) the mean\b": "on average",
    r"\bhad best\b": "should",
    r"\bwhat moves\b": "motion",
    r"must not be written to": "is not writable",
    r"for want of": "for lack of",
    r"what is left of it": "an ablation of it",
    r"\bdraws? (it |them )?anew\b|drawn anew": "resampled",
    r"every so (many|often)": "every N",
    r"used to need": "needed",
    r"what there is to look at": "what is returned, or what can be drawn",
    r"\bof (other makers|another maker)\b": "from other sources",
    r"\bgiven again\b": "repeated",
    r"\bgone on with\b": "continued, or reused",
    r"\bgoes on where\b": "continues where",
    r"\b(is|are) to be remembered\b": "has to be remembered",
    r"\bin (its|their|the) seed alone\b": "only in the seed",
    r"\bdrawn apart\b": "drawn side by side",
    r"\bit is said\b": "it is reported, or a warning says so",
    r"^Owners of\b": "If you have ...",
    r"\ba training (does|makes|takes|took)\b": "training does, ...",
    r"\ban own\b": "of its own",
    r"\bby what they make of\b": "data-dependent",
    r"\basked( for)? again\b": "reset (the target return)",
    r"\bmade on \d{4}-\d\d-\d\d": "measured at commit ... on DATE",
    r"\btake their seconds\b": "are slow",
    r"\bin a process of (its|their) own\b": "in a separate process",
    r"\ba run of its own\b": "a separate run",
    r"\bso-manieth\b": "after N",
    r"\bby the clock\b": "in wall-clock time",
    r"\bwhatever (else )?the machine does\b": "independent of other load",
    r"\b(once is enough|wants the extra)\b": "give it once; needs the extra",
    r"\b(goes|say it) with --": "only applies to --..., or give --...",
    r"\bstands? in (its|their) place\b": "the placeholder, or replaces it",
    r"\b(told apart|as many as may be|the work goes on)\b": "distinguished; up to N; continuing",
    r"\bwhat comes? of (it|them)\b": "results",
    r"\bhanded on\b": "passed on",
    r"\b(is|are) there already\b": "already exists",
    r"\bwhat it leaves behind\b": "its output",
    r"\bpeople have always typed\b": "the published spelling",
    r"\breturns? (that (is|was) |to be )?asked for\b|\breturns? to ask for\b": "target return",
    r"\bin one go\b": "without interruption",
    r"\btr(y|ies|ying) out\b|\btrying things out\b": "try",
    r"\bwhat becomes of\b": "what happens to",
}


def phrases(path: Path, text: str) -> Iterator[str]:
    """The banned phrases in a file: place, phrase, and what to write."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, instead in BANNED.items():
            for found in re.finditer(pattern, line, re.IGNORECASE):
                yield f"{path.relative_to(ROOT)}:{number}: {found.group()!r}: write {instead}"


def tracked(arguments: Sequence[str]) -> list[Path]:
    """The files to check: those given, or all files tracked by git."""
    names = (
        arguments
        or subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    )
    paths = [(ROOT / name).resolve() for name in names]
    return [
        path
        for path in paths
        if path.suffix in ENDINGS
        and path.is_file()
        and not any(str(path.relative_to(ROOT)).startswith(start) for start in SKIPPED)
    ]


def main(arguments: Sequence[str]) -> int:
    """Print all findings; 1 if there are any."""
    paths = tracked(arguments)
    wrong = [line for path in paths for line in phrases(path, path.read_text(encoding="utf-8"))]
    print("\n".join(wrong), end="\n" if wrong else "")
    spelling = (
        subprocess.run([sys.executable, "-m", "codespell_lib", "--ignore-words-list", "ot,sise", *map(str, paths)])
        if paths
        else None
    )
    return int(bool(wrong or (spelling and spelling.returncode)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
