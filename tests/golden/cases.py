"""Small trainings and playings whose every number is kept in `recordings.npz`; see `record`.

Data is synthetic, drawn by a seeded generator in each environment's own shapes: no environment's package is needed. A
case seeds all that it draws, so neither order nor neighbours change its numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from Atari.env import spec_of as atari_spec
from Atari.games import GAMES
from MemoryMaze.MemoryMaze_src.env import MIRRORED as MAZE_MIRRORED
from MemoryMaze.MemoryMaze_src.env import SPEC as MAZE
from MinigridMemory.MinigridMemory_src.env import SPEC as MINIGRID
from MuJoCo.dataset import spec_of as mujoco_spec
from MuJoCo.tasks import HOPPER
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins, knock_out_memory, knock_out_part
from RATE_model.agent import Agent
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.frames import Frames, FrameStack
from RATE_model.data.mirror import Mirror
from RATE_model.memories.rate.config import ARCHS, MODES, RATEConfig, apply_mode
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests.small_models import rate_agent
from TMaze_new.TMaze_new_src.env import SPEC as TMAZE
from VizDoom.VizDoom_src.env import MIRRORED as VIZDOOM_MIRRORED
from VizDoom.VizDoom_src.env import SPEC as VIZDOOM

K, N = 4, 3  # steps of a segment, segments of a trajectory
BATCHES, ROWS = 20, 5
STEPS, PLAYERS = 50, 3

CHANNELS = (3, 4, 3)
SPECS = {
    "T-Maze": TMAZE,
    "ViZDoom": replace(VIZDOOM, conv_channels=CHANNELS),
    "Minigrid": replace(MINIGRID, conv_channels=CHANNELS),
    "Memory Maze": replace(MAZE, conv_channels=CHANNELS),
    "Atari": atari_spec(GAMES["Breakout"], return_scale=0.1, conv_channels=CHANNELS),
    "MuJoCo": mujoco_spec(HOPPER),
}
MIRRORED = {"ViZDoom": VIZDOOM_MIRRORED, "Memory Maze": MAZE_MIRRORED}
PADDED_LEFT = ("MuJoCo",)
LABELLED = ("ViZDoom", "Memory Maze")  # what an expert would have done is learned, not what was done
TRANSFORMS = {"memory": knock_out_memory, "tokens": knock_out_part("tokens"), "cache": knock_out_part("cache")}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training and one playing."""

    # What names it
    environment: str
    mode: str
    arch: str
    bptt: int
    precision: str
    # What goes with it, so that all cases together have all of it
    accumulate: int
    action_noise: float
    mirror: bool
    skip_dec_ffn: bool
    mrv_act: str
    window: bool
    slide: int
    reset_target: bool
    rtg_floor: float | None
    greedy: bool
    transform: str | None

    @property
    def name(self) -> str:
        """Of the recording."""
        return f"{self.environment} {self.mode} {self.arch} bptt {self.bptt} {self.precision}"

    @property
    def spec(self) -> EnvironmentSpec:
        """Of the environment."""
        return SPECS[self.environment]


def cases() -> Iterator[Case]:
    """T-Maze in every combination of mode, architecture, gradient window and precision; all others in every mode."""
    for mode in MODES:
        for arch in ARCHS:
            for bptt in (0, -1):
                for precision in ("32", "bf16"):
                    yield _case("T-Maze", mode, arch, bptt, precision)
    for row, environment in enumerate(SPECS):
        for column, mode in enumerate(MODES):
            if environment != "T-Maze":
                number = row + column
                yield _case(environment, mode, ARCHS[number % 3], -(number % 2), ("32", "32", "bf16")[number // 2 % 3])


def _case(environment: str, mode: str, arch: str, bptt: int, precision: str) -> Case:
    """With the rest drawn; what is drawn follows from the name alone."""
    named = f"{environment} {mode} {arch} {bptt} {precision}"
    rng = np.random.default_rng(list(named.encode()))
    slides, windows = mode in ("DT", "DTXL"), mode == "RATE" and arch == "TrXL-I"
    return Case(
        environment=environment,
        mode=mode,
        arch=arch,
        bptt=bptt,
        precision=precision,
        accumulate=int(rng.integers(1, 3)),
        action_noise=float(rng.choice([0.0, 0.0, 0.2])),
        mirror=environment in MIRRORED and bool(rng.random() < 0.5),
        skip_dec_ffn=bool(rng.random() < 0.3),
        mrv_act=str(rng.choice(["relu", "leaky_relu", "elu", "tanh", "no_act"])),
        window=windows,
        slide=int(rng.choice([1, 3])) if slides or windows else 1,
        reset_target=bool(rng.random() < 0.3),
        rtg_floor=0.5 if rng.random() < 0.3 else None,
        greedy=bool(rng.random() < 0.75),
        transform=[None, None, *TRANSFORMS, "twins"][rng.integers(6)],
    )


# The three places that know how the system is put together -----------------------------------------------------------


def build(case: Case) -> Agent:
    """A new model of the case; the seed of its parameters was set."""
    sizes = RATEConfig(
        n_layer=2, n_head=2, d_model=16, d_head=6, d_inner=20, context_length=K, num_mem_tokens=3, n_head_ca=2,
        mem_len=0 if case.mode == "DT" else 17, mrv_act=case.mrv_act, arch=case.arch, skip_dec_ffn=case.skip_dec_ffn,
        dropout=0.1, dropatt=0.1,
    )  # fmt: skip
    return rate_agent(apply_mode(sizes, mode=case.mode, segments=N), case.spec)


def make_trainer(model: Agent, case: Case) -> Trainer:
    """Whose `train_batch` gives `train_loss` and `grad_norm`."""
    options = TrainOptions(
        learning_rate=1e-3,
        bptt_segments=case.bptt,
        accumulate=case.accumulate,
        action_noise=case.action_noise,
        precision=case.precision,
    )
    schedule = Schedule(warmup_steps=3, decay_start=10, decay_steps=20, end_factor=0.1)
    return Trainer(model, options, schedule, transform=Mirror(MIRRORED[case.environment]) if case.mirror else None)


class Recorder(Actor):
    """Keeps the last logits, `(B, num_actions)`."""

    def observe(self, *arguments: np.ndarray) -> Tensor:
        """As in `Actor`."""
        self.logits = super().observe(*arguments)
        return self.logits


def make_actor(model: Agent, case: Case, rows: int, target_return: np.ndarray) -> Recorder:
    """An actor for some rows; the model is in eval mode."""
    return Recorder(
        model,
        rows,
        target_return,
        greedy=case.greedy,
        seed=7,
        window=case.window,
        slide=case.slide,
        reset_target=case.reset_target,
        rtg_floor=case.rtg_floor,
        transform_memory=exchange_twins(3) if case.transform == "twins" else TRANSFORMS.get(case.transform or ""),
        precision=case.precision,
    )


# Data -----------------------------------------------------------------------------------------------------------------


def batches(case: Case) -> Iterator[Batch]:
    """Whole trajectories, shorter ones, rows that are padding alone, batches that end within a segment."""
    rng = np.random.default_rng(11)
    for number in range(BATCHES):
        steps = (K * N, K * N, K * N - 2)[number % 3]
        lengths = np.full(ROWS, steps) if number % 2 else rng.integers(1, steps + 1, ROWS)
        if number % 7 == 4:
            lengths[number % ROWS] = 0
        step = np.arange(steps) - (steps - lengths[:, None] if case.environment in PADDED_LEFT else 0)
        valid = torch.from_numpy((step >= 0) & (step < lengths[:, None]))
        yield Batch(
            observations=_trajectories(case, rng, steps),
            actions=_padded(_actions(case.spec, rng, (ROWS, steps)), valid),
            rtg=_padded(torch.from_numpy(rng.normal(size=(ROWS, steps)).astype(np.float32)), valid),
            valid=valid,
            lengths=torch.from_numpy(lengths),
            indices=torch.arange(ROWS),
            labels=_padded(_actions(case.spec, rng, (ROWS, steps)), valid) if case.environment in LABELLED else None,
        )


def _padded(values: Tensor, valid: Tensor) -> Tensor:
    values[~valid] = 0
    return values


def _actions(spec: EnvironmentSpec, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    if spec.continuous:
        return torch.from_numpy(rng.uniform(-1, 1, (*shape, spec.num_actions)).astype(np.float32))
    return torch.from_numpy(rng.integers(spec.num_actions, size=shape))


def _trajectories(case: Case, rng: np.random.Generator, steps: int) -> Tensor | Frames | FrameStack:
    """Observations as that environment's data holds them."""
    if case.environment == "Atari":
        stack, *shape = case.spec.observation_shape
        return FrameStack(torch.from_numpy(_images(rng, (ROWS, steps + stack - 1, 1, *shape))), stack)
    if case.environment == "Minigrid":
        images = torch.from_numpy(_images(rng, (6, *case.spec.observation_shape)))
        return Frames(images, torch.from_numpy(rng.integers(6, size=(ROWS, steps))))
    return torch.from_numpy(_observations(case.spec, rng, (ROWS, steps)))


def _observations(spec: EnvironmentSpec, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if spec.is_image:
        return _images(rng, (*shape, *spec.observation_shape))
    return rng.normal(size=(*shape, *spec.observation_shape)).astype(np.float32)


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(256, size=shape, dtype=np.uint8)


# What is recorded -----------------------------------------------------------------------------------------------------


def run(case: Case, follow: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Train, then act.

    Args:
        case: which.
        follow: the recorded actions, taken in place of the model's own: on another machine one choice between two
            equally good actions would make all later steps differ.

    Returns:
        losses and grad_norms `(BATCHES,)`, logits and actions of all rows one step after another.
    """
    torch.manual_seed(5)
    model = build(case)
    losses, norms = _train(model, case)
    logits, actions = _act(model.eval(), case, follow)
    return {"losses": losses, "grad_norms": norms, "logits": logits, "actions": actions}


def _train(model: Agent, case: Case) -> tuple[np.ndarray, np.ndarray]:
    trainer = make_trainer(model, case)
    metrics = [trainer.train_batch(batch) for batch in batches(case)]
    losses, norms = (torch.stack([m[name] for m in metrics]).numpy() for name in ("train_loss", "grad_norm"))
    return losses, norms


def _act(model: Agent, case: Case, follow: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Episodes that end at different steps, and later one row fewer; twins stay together."""
    rng = np.random.default_rng(13)
    twins = case.transform == "twins"
    rows = 4 if twins else PLAYERS
    actor = make_actor(model, case, rows, np.linspace(0.5, 2, rows, dtype=np.float32))
    logits, actions, taken = [], [], 0
    for step in range(STEPS):
        if not twins and step == 7:
            actor.reset(np.array([1]))
        elif not twins and step == 18:
            actor.reset(np.array([True, False, True]), target_return=np.array([1.5, 0.25], dtype=np.float32))
        elif not twins and step == 35:
            actor.keep(np.array([2, 0]))
            rows = 2
        observations, rewards = _observations(case.spec, rng, (rows,)), rng.normal(0.1, 0.3, rows)
        if case.environment == "Minigrid":
            observations[-1] = observations[0]  # several rows see the same
        if follow is None:
            actions.append(actor.act(observations, rewards))
        else:
            actor.observe(observations, rewards)
            actions.append(follow[taken : taken + rows])
            actor.take(actions[-1])
        logits.append(actor.logits.numpy())
        taken += rows
    return np.concatenate(logits), np.concatenate(actions)
