"""The published graphics: an earlier Freedoom, without flashes on damage.

    python3 VizDoom/VizDoom_src/graphics.py
    python3 VizDoom/VizDoom_src/graphics.py --source vizdoom-1.2.4-cp311-cp311-manylinux_2_28_x86_64.whl

Freedoom, the free game whose textures and sprites ViZDoom draws, changed between vizdoom 1.2.4 and 1.3, and 1.3 draws
flashes on damage that 1.2 does not. Positions, rewards and health are the same. The graphics ``published`` are the
earlier file drawn without flashes, as the published system showed it; ``installed`` are those of the installed
vizdoom, flashes included.

The file is downloaded once, on first use or by this command: 28 MB, from the package index's wheel of vizdoom 1.2.4.
--source takes it from elsewhere. It is kept in VizDoom/VizDoom_data. Where that folder is read-only or shared,
$VIZDOOM_PUBLISHED_WAD may name the file instead.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.system.release_file import ReleaseFile
from VizDoom.VizDoom_src.scenario import Scenario

COMMAND = "python3 VizDoom/VizDoom_src/graphics.py"
WAD = ReleaseFile(
    what="the published graphics",
    release="vizdoom==1.2.4",
    member="vizdoom/freedoom2.wad",
    sha256="729f100448d0b48e12ecc8004e096a9ea6df024467d962f002bb286805be3a8e",
    megabytes=28,
    place=Path(__file__).resolve().parents[1] / "VizDoom_data" / "freedoom2_vizdoom_1.2.4.wad",
    variable="VIZDOOM_PUBLISHED_WAD",
    wheel="--only-binary :all: --python-version 3.11 --implementation cp --platform manylinux_2_28_x86_64",
    command=COMMAND,
    otherwise="Play with --graphics installed",
)


def ensure_graphics(scenario: Scenario) -> Path | None:
    """The file for a scenario's graphics, downloaded if missing; None for the installed engine's graphics.

    Raises:
        UserError: see `ReleaseFile.ensure`.
    """
    return WAD.ensure() if scenario.settled().graphics == "published" else None


@dataclass(frozen=True)
class Options:
    """Obtain the published graphics."""

    # A wheel of vizdoom 1.2.4, or the freedoom2.wad in it; none = download the wheel from the package index
    source: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Download the file unless it exists."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog=COMMAND, description="Download the graphics of the published ViZDoom-Two-Colors."
        )
        if options.source is not None:
            WAD.fetch(options.source)
        print(WAD.ensure())


if __name__ == "__main__":
    main()
