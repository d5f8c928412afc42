"""ViZDoom-Two-Colors: time of a training batch of the published setting and its parts, and of evaluation episodes.

    python benchmarks/vizdoom_training.py
    python benchmarks/vizdoom_training.py --batch_size 8 --episodes 8 --steps 40 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.flops import training_flops
from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent, AgentState
from RATE_model.cli.limits import at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.batch import Batch
from RATE_model.system.precision import autocast
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from VizDoom.VizDoom_src.env import SPEC, VizDoomTwoColorsEnv, VizDoomTwoColorsVectorEnv
from VizDoom.VizDoom_src.environment import ENVIRONMENT
from VizDoom.VizDoom_src.evaluate import TARGET_RETURN, evaluation_seeds
from VizDoom.VizDoom_src.scenario import Scenario

PUBLISHED = ("--nmt", "5", "--mem_len", "300", "--n_head_ca", "2", "--skip_dec_ffn")
PRECISION = "bf16"
# The same model with tiny observations, to time the transformer alone.
WITHOUT_IMAGES = replace(SPEC, observation_shape=(1,))
# Largest difference of logits, in units of their standard deviation, that counts as equal.
ALLOWED_LOGITS = 1e-3
SCENARIO = Scenario(graphics="installed")  # needs no download


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Trajectories of a training batch
    batch_size: int = 64
    # Parallel episodes, half of them red
    episodes: int = 50
    # Steps of every episode, and of the plain loop
    steps: int = 120
    # Timed rounds; in each, everything runs once
    rounds: int = 3
    # Size of the matrices whose product measures the machine's speed
    matrix_size: int = common.MATRIX_SIZE
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, steps=self.steps, rounds=self.rounds, matrix_size=self.matrix_size)
        at_most(190, steps=self.steps)  # a player that collects nothing dies soon after
        ENVIRONMENT.check_episodes(episodes=self.episodes)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def make_batch(size: int, steps: int, *, images: bool) -> Batch:
    """Random trajectories without padding, of images or of single numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, steps)
    if images:
        observations = torch.randint(0, 256, (*shape, *SPEC.observation_shape), generator=generator, dtype=torch.uint8)
    else:
        observations = torch.rand(*shape, *WITHOUT_IMAGES.observation_shape, generator=generator)
    return Batch(
        observations=observations,
        actions=torch.randint(0, SPEC.num_actions, shape, generator=generator),
        rtg=torch.rand(*shape, generator=generator) * 10,
        valid=torch.ones(*shape, dtype=torch.bool),
        lengths=torch.full((size,), steps),
        indices=torch.arange(size),
    )


def convolution_flops(model: Agent, images: int) -> int:
    """Operations of the image encoder's products for this many images, forward and backward."""
    total = 0
    with torch.no_grad():
        hidden = torch.zeros(1, *SPEC.observation_shape)
        encoder = model.encoder.observation[0]
        for number, layer in enumerate([*encoder.convolutions, encoder.project]):
            hidden = layer(hidden.flatten(1) if layer is encoder.project else hidden)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gradients = 2 if number else 1  # images need no gradient
                total += 2 * layer.weight[0].numel() * hidden.numel() * (1 + gradients)
    return images * total


def training_candidates(options: Options) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """A batch and its parts; operations of each."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    segments, context = config.task.segments, config.task.context_length
    train = replace(config.train, precision=PRECISION)

    def trainer(spec: Any) -> Trainer:
        torch.manual_seed(0)
        return Trainer(Agent(config.agent_config(), spec), train, Schedule(1, None, 0, 1.0))

    whole, transformer = trainer(SPEC), trainer(WITHOUT_IMAGES)
    batch, without = (make_batch(options.batch_size, segments * context, images=images) for images in (True, False))
    encoder = whole.model.encoder

    def encode() -> None:
        for start in range(0, segments * context, context):
            with autocast(whole.model.device, PRECISION):
                tokens = encoder.encode_observations(batch.observations[:, start : start + context])
            tokens.float().sum().backward()

    candidates = {
        "batch": lambda: _discard(whole.train_batch(batch)),
        "its transformer": lambda: _discard(transformer.train_batch(without)),
        "its convolutions": encode,
    }
    of_transformer = training_flops(
        config.agent_config().sizes, WITHOUT_IMAGES, batch_size=options.batch_size, segments=segments, bptt_segments=-1
    )
    of_images = convolution_flops(whole.model, options.batch_size * segments * context)
    flops = {"its transformer": of_transformer, "its convolutions": of_images}
    return candidates, {"batch": of_transformer + of_images} | flops


def _discard(result: object) -> None:
    """Drop the result: `interleave` would take a returned number for seconds."""


class PlainEpisode:
    """The published way to act in one episode: recompute the current segment, including images, at every step."""

    def __init__(self, model: Agent) -> None:
        self.model = model
        self.memory = model.initial(1).memory
        self.rtg, self.target = [], TARGET_RETURN
        self.observations: list[np.ndarray] = []
        self.actions: list[int] = []

    @torch.no_grad()
    def observe(self, observation: np.ndarray, reward: float) -> Tensor:
        """Logits (num_actions,) for the next observation."""
        if len(self.observations) == self.model.memory.config.context_length:
            self.memory = self._segment(self.actions)[1]
            self.rtg, self.observations, self.actions = [], [], []
        self.target -= reward
        self.rtg.append(self.target)
        self.observations.append(observation)
        # The newest step has no action yet; no step sees its placeholder.
        return self._segment([*self.actions, 0])[0][0, -1]

    def _segment(self, actions: list[int]) -> tuple[Tensor, Any]:
        observations = torch.as_tensor(np.stack(self.observations))[None]
        inputs = (observations, torch.tensor([actions]), torch.tensor([self.rtg]))
        logits, state = self.model(*inputs, torch.ones(1, len(actions), dtype=torch.bool), AgentState(self.memory))
        return logits, state.memory


def check_logits(model: Agent, steps: int) -> float:
    """Act in one episode in both ways; returns the largest difference of the logits, in standard deviations.

    Raises:
        RuntimeError: the logits differ.
    """
    actor, plain = Actor(model, 1, TARGET_RETURN), PlainEpisode(model)
    logits, expected, reward = [], [], 0.0
    with closing(VizDoomTwoColorsEnv(SCENARIO)) as game:
        observation, _ = game.reset(seed=0)
        for _ in range(steps):
            logits.append(actor.observe(observation[None], np.array([reward]))[0])
            expected.append(plain.observe(observation, reward))
            action = int(expected[-1].argmax())
            actor.take(np.array([action]))
            plain.actions.append(action)
            observation, reward, *_ = game.step(action)
    wanted = torch.stack(expected)
    difference = ((torch.stack(logits) - wanted).abs().max() / wanted.std()).item()
    return common.check_agreement("logits", difference, ALLOWED_LOGITS)


def acting_candidates(
    options: Options, model: Agent, games: VizDoomTwoColorsVectorEnv, game: VizDoomTwoColorsEnv
) -> dict[str, Callable[[], None]]:
    """Candidates: this many steps of all episodes in parallel, and of one of them in the plain way."""
    seeds, _ = evaluation_seeds(options.episodes)

    def together() -> None:
        actor = Actor(model, options.episodes, TARGET_RETURN)
        observations, _ = games.reset(seed=seeds)
        rewards = np.zeros(options.episodes)
        for _ in range(options.steps):
            observations, rewards, *_ = games.step(actor.act(observations, rewards))

    def alone() -> None:
        plain, reward = PlainEpisode(model), 0.0
        observation, _ = game.reset(seed=int(seeds[0]))
        for _ in range(options.steps):
            action = int(plain.observe(observation, reward).argmax())
            plain.actions.append(action)
            observation, reward, *_ = game.step(action)

    return {"episodes at once": together, "one episode, plain": alone}


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, operations of the batch, and the speed of matrix products."""
    candidates, flops = training_candidates(options)
    torch.manual_seed(0)
    model = Agent(ENVIRONMENT.read_config(PUBLISHED).agent_config(), SPEC).eval()
    difference = check_logits(model, model.memory.config.context_length + 2)
    with (
        closing(VizDoomTwoColorsVectorEnv(options.episodes, SCENARIO)) as games,
        closing(VizDoomTwoColorsEnv(SCENARIO)) as game,
    ):
        candidates |= acting_candidates(options, model, games, game)
        candidates["product"] = common.matrix_product(PRECISION, options.matrix_size)
        seconds = common.interleave(candidates, rounds=options.rounds)
    speed = common.product_flops(options.matrix_size) / min(seconds.pop("product"))
    cases = {name: common.summary(values) for name, values in seconds.items()}
    for name, count in flops.items():
        cases[name] |= {"flops": count, "share": count / cases[name]["median_s"] / speed}
    ratio = common.ratio(seconds["one episode, plain"], seconds["episodes at once"]) * options.episodes
    return {
        "cases": cases,
        "logit_difference": difference,
        "times_faster": ratio,
        "matrix_product_gflops": {PRECISION: speed / 1e9},
    }


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options, cases = result["options"], result["cases"]
    training, acting = [], []
    for name, case in cases.items():
        if "flops" in case:
            figures = (f"{case['median_s']:.2f}", f"{case['min_s']:.2f}", f"{case['flops'] / 1e9:.4g}")
            training.append([name, *figures, f"{case['share']:.0%}"])
        else:
            acting.append([name, f"{case['median_s'] / options['steps'] * 1e3:.1f}"])
    return "\n\n".join(
        [
            common.machine_line(result["machine"], result["matrix_product_gflops"]),
            common.table([f"{options['batch_size']} trajectories", "median s", "min s", "GFLOP", "share"], training),
            common.table([f"{options['steps']} steps", "ms a step"], acting),
            f"{options['episodes']} parallel episodes are {result['times_faster']:.0f} times as fast as the plain "
            "way, one after another (extrapolated from one).",
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/vizdoom_training.py",
            description="Training and acting on ViZDoom-Two-Colors.",
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "vizdoom_training",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        text, output = format_table(result), options.output
        common.publish("vizdoom_training", text, result, output=output, update_readme=options.update_readme)


if __name__ == "__main__":
    main()
