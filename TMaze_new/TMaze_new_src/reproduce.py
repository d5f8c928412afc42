"""Make results/tmaze.*: every model, every seed, one setting.

    python3 TMaze_new/TMaze_new_src/reproduce.py --seeds 1 2 3 4 5
    python3 TMaze_new/TMaze_new_src/reproduce.py --models LSTM GRU

Finished runs are kept and interrupted ones continued, so the command can be repeated at any time. With
`--models` the page keeps the results of the other models, with their commit and date.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.acting.controls import knock_out_memory
from RATE_model.pages.study import Study, of_modes
from RATE_model.pages.success_page import Control, SuccessPage
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT
from TMaze_new.TMaze_new_src.evaluate import LENGTHS

FAST = "TMaze_new/TMaze_new_src/config_fast.yaml"
STUDY = Study.of(
    ENVIRONMENT,
    ("--config", FAST),
    of_modes(
        {
            "RATE": "",
            "LSTM": "",
            "GRU": "",
            "MLP": "",
            "RATE, bptt_segments 0": "--bptt_segments 0",
            "RMT": "",
            "TrXL": "--mem_len 270",
            "DT": "--slide 30",
        }
    ),
)
CONTROLLED = ("RATE", "LSTM", "GRU")
KNOCKED_OUT = "memory knocked out"
PAGE = SuccessPage(
    name="tmaze",
    environment=ENVIRONMENT,
    study=STUDY,
    cases=LENGTHS,
    rates={"success_rate": "Success_rate_T_{}"},
    texts={
        "success_rate": "Success rate by episode length, mean and standard error over seeds {seeds}, 100 episodes per "
        "length and seed, measured {origin}. *All stages solved*: whether every stage of the curriculum ended because "
        "enough batches in a row were right, not at its limit of batches; it says nothing about success."
    },
    shown=(90, 900, 9600),
    notes={"all stages solved": ("solved", "all_stages_solved")},
    controls={
        KNOCKED_OUT: Control(lambda: knock_out_memory, CONTROLLED, [length for length in LENGTHS if length <= 900])
    },
    panels={
        "RATE, recurrent networks, and no memory": (
            *("RATE", "LSTM", "GRU", "MLP"),
            *(f"{model}, {KNOCKED_OUT}" for model in CONTROLLED),
        ),
        "RATE and other transformers": ("RATE", "RATE, bptt_segments 0", "RMT", "TrXL", "DT"),
    },
    trained=90,
)
main = PAGE.main

if __name__ == "__main__":
    main()
