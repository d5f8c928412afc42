"""Make results/minigrid_memory.*: every model, every seed, one setting.

    python3 MinigridMemory/MinigridMemory_src/reproduce.py --seeds 1 2 3
    python3 MinigridMemory/MinigridMemory_src/reproduce.py --seeds 1 2 3 --models LSTM GRU

Finished runs are kept and interrupted ones continued, so the command can be repeated at any time. With
`--models` the page keeps the results of the other models, with their commit and date.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT
from MinigridMemory.MinigridMemory_src.evaluate import LARGE_SIZES, SIZES, capped, expert_play, success_rate, widest_cap
from RATE_model.acting.controls import exchange_twins, knock_out_memory
from RATE_model.pages.study import Study, of_modes
from RATE_model.pages.success_page import Control, SuccessPage

FAST = "MinigridMemory/MinigridMemory_src/config_fast.yaml"
ALL_SIZES = SIZES + LARGE_SIZES
STUDY = Study.of(
    ENVIRONMENT,
    ("--config", FAST, "--final_sizes", *map(str, ALL_SIZES)),
    of_modes({"RATE": "", "LSTM": "", "GRU": "", "MLP": "", "RMT": "", "TrXL": "--mem_len 240", "DT": "--slide 20"}),
)
CONTROLLED = ("RATE", "LSTM", "GRU")
CONTROL_SIZES = (11, 41, 91)
CONTROLS = {
    "memories of twins exchanged": Control(exchange_twins, CONTROLLED, CONTROL_SIZES, twins=True),
    "memory knocked out": Control(lambda: knock_out_memory, CONTROLLED, CONTROL_SIZES),
}


def expert_entry() -> dict[str, Any]:
    """The expert's success in the same mazes, by size, under both caps."""
    played = {size: expert_play(size, 100) for size in ALL_SIZES}
    return {
        key: {str(size): [success_rate(capped(episodes, cap(size)))] for size, episodes in played.items()}
        for key, cap in (("success_rate_expert_cap", widest_cap), ("success_rate", lambda size: PUBLISHED_CAP))
    }


PAGE = SuccessPage(
    name="minigrid_memory",
    environment=ENVIRONMENT,
    study=STUDY,
    cases=ALL_SIZES,
    rates={"success_rate_expert_cap": "FINAL_Success_rate_l_{}_expert_cap", "success_rate": "FINAL_Success_rate_l_{}"},
    texts={
        "success_rate_expert_cap": "Success rate by size of the maze, mean and standard error over seeds {seeds}, 100 "
        "episodes per size and seed, measured {origin}. The cap on steps is the expert's, 2 size + 14 and at least "
        f"{PUBLISHED_CAP}.",
        "success_rate": f"The same episodes under the published cap of {PUBLISHED_CAP} steps, and the expert:",
    },
    shown=(41, 91, 501),
    controls=CONTROLS,
    others={"expert": expert_entry},
    panels={
        "RATE, recurrent networks, and no memory": (
            *("RATE", "LSTM", "GRU", "MLP", "expert"),
            *(f"{model}, {words}" for words in CONTROLS for model in CONTROLLED),
        ),
        "RATE and other transformers": ("RATE", "RMT", "TrXL", "DT"),
    },
    trained=41,
)
main = PAGE.main

if __name__ == "__main__":
    main()
