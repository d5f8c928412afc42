"""Compare memories on one dataset: several seeds of each, and learning curves with intervals over seeds.

python3 examples/compare_memories.py [OUTPUT_DIR [EPOCHS [SEEDS]]]
"""

import sys
from pathlib import Path

import numpy as np

from RATE_model import Dataset, train
from RATE_model.plots import plot_seeds
from RATE_model.plots.seeds import find_runs

OUTPUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/compare_memories")
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 15
SEEDS = int(sys.argv[3]) if len(sys.argv) > 3 else 3
STEPS = 12

# The first observation shows a bit; every action should repeat it.
rng = np.random.default_rng(0)
episodes = []
for bit in rng.integers(2, size=200):
    shown = np.zeros((STEPS, 1), np.float32)
    shown[0] = 2 * bit - 1
    episodes.append({"observations": shown, "actions": np.full(STEPS, bit), "rewards": np.full(STEPS, 1 / STEPS)})
data = Dataset.from_episodes(episodes)

for memory in ("RATE", "GRU", "MLP"):
    for seed in range(1, SEEDS + 1):
        directory = OUTPUT / f"{memory}_RUN_{seed}"
        # Finished runs are kept; interrupted ones continue.
        run = train(data, memory=memory, output_dir=directory, seed=seed, resume="auto", d_model=32,
                    context_length=4, segments=3, epochs=EPOCHS, learning_rate=3e-3, ckpt_epoch=2)  # fmt: skip
        print(f"{memory}, seed {seed}: validation accuracy {run.result['validation_accuracy']:.2f}")

print(plot_seeds(find_runs([OUTPUT]), OUTPUT / "curves.png", ["validation_accuracy", "validation_loss"]))
