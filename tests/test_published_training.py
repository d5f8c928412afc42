"""--published true: what it sets and prints, and that training then equals the published one, batch by batch."""

import math

import numpy as np
import pytest
import torch

from Atari import train_rate_atari
from MemoryMaze.MemoryMaze_src import train_mem_maze
from MinigridMemory.MinigridMemory_src import train_minigridmemory
from MuJoCo import train_rate_mujoco_ca
from RATE_model.cli import experiment
from RATE_model.cli.options import to_flat_dict, to_yaml
from RATE_model.cli.settings import PUBLISHED_TRAINING, CurriculumOptions
from RATE_model.data.batch import Batch
from RATE_model.errors import UserError
from RATE_model.original.variants import infer_spec
from RATE_model.original.weights import convert_weights
from RATE_model.training.optimization import initialise_as_published
from RATE_model.training.trainer import Trainer
from tests import reference
from tests.scripts import train_script
from tests.small_models import rate_agent, save_small_model, small_model
from tests.stranger.environment import CartPole
from TMaze_new.TMaze_new_src import train_tmaze
from VizDoom.VizDoom_src import train_vizdoom

BATCHES, EPOCH = 20, 4
# Steps of a segment, segments, trajectories of a batch; images cost more.
VECTORS, IMAGES = (3, 3, 2), (2, 2, 1)
SIZES = (
    "--n_layer 2 --n_head 3 --d_model 16 --d_head 8 --d_inner 24 --nmt 3 --n_head_ca 2 --dropout 0 --dropatt 0 "
    "--mem_len 20"
).split()


def late_linear(step: int, seen: int) -> float:
    """The published rate of T-Maze: warm-up over 5 steps; from the third epoch on a line to 0.1."""
    begin, over = 2 * EPOCH * 3, EPOCH * 5 * 3
    return min((step + 1) / 5, 1) if step < begin else 1 - 0.9 * min(1, (step - begin) / over)


def rising_cosine(step: int, seen: int) -> float:
    """The published rate of three environments and of Atari: set after each step, and not clipped at its end."""
    if not step:
        return 1.0
    if seen < 16:
        return seen / 16
    return max(0.1, 0.5 * (1 + math.cos(math.pi * (seen - 16) / (50 - 16))))


def constant(step: int, seen: int) -> float:
    """The published rate of MuJoCo: warm-up over 7 steps."""
    return min((step + 1) / 7, 1)


TOKENS = "--warmup_tokens 16 --final_tokens 50"
# The published name of an environment, its script, flags for a short schedule, and the expected schedule.
SCRIPTS = {
    "tmaze": (train_script(train_tmaze), "--max_n_final 3 --epochs 5 --warmup_steps 5", late_linear, VECTORS),
    "doom": (train_script(train_vizdoom), f"--segments 2 --steps 4 {TOKENS}", rising_cosine, IMAGES),
    "minigrid_memory": (train_script(train_minigridmemory), f"--segments 2 {TOKENS}", rising_cosine, IMAGES),
    "memory_maze": (train_script(train_mem_maze), f"--segments 2 {TOKENS}", rising_cosine, IMAGES),
    "atari": (train_script(train_rate_atari), f"--segments 2 {TOKENS}", rising_cosine, IMAGES),
    "mujoco": (train_script(train_rate_mujoco_ca), "--segments 3 --warmup_steps 7", constant, VECTORS),
}


def tiny(env: str, *more: str) -> list[str]:
    """Flags of a small model and small batches, and others."""
    _, flags, _, (steps, _, batch) = SCRIPTS[env]
    return [*SIZES, *f"--context_length {steps} --batch_size {batch} {flags}".split(), *more]


class Windows:
    """The part of a dataset that schedules use: an epoch of four batches of full windows."""

    def __init__(self, batch: int, steps: int) -> None:
        self.windows = np.full((EPOCH * batch, 3), steps)

    def __len__(self) -> int:
        return len(self.windows)


def make_batches(meta: dict) -> list[tuple[Batch, tuple[torch.Tensor, ...]]]:
    """Random trajectories, in T-Maze some of them padded, for our trainer and for the plain one; in float64."""
    made = []
    for number in range(BATCHES):
        observations, actions, rtg = reference.random_data(meta, number)
        rtg = rtg.double()
        if actions.is_floating_point():
            actions = actions.double()
            ours, targets = actions, actions
        else:
            ours = targets = actions.squeeze(-1)
        steps = rtg.shape[1]
        lengths = torch.full((len(rtg),), steps)
        if meta["env"] == "tmaze":
            lengths[0] = steps - 1 - number % (steps - 1)
        valid = torch.arange(steps) < lengths[:, None]
        if not valid.all():
            targets = targets.masked_fill(~valid, -10)
        scaled = observations.double() / (255 if observations.dtype == torch.uint8 else 1)
        shown = observations if observations.dtype == torch.uint8 else observations.double()
        batch = Batch(shown, ours, rtg.squeeze(-1), valid, lengths, torch.arange(len(rtg)))
        made.append((batch, (scaled, actions, rtg, targets)))
    return made


@pytest.mark.parametrize("env", SCRIPTS)
def test_twenty_batches_match_published_training(env):
    script, _, rate, (steps, segments, batch_size) = SCRIPTS[env]
    config = script.read_config(tiny(env, "--published", "true"))
    options, model = config.train, config.agent_config().sizes
    meta = reference.make_meta(env=env, segment_length=steps, num_segments=segments, batch=batch_size, mem_len=20)
    weights = {name: tensor.double() for name, tensor in reference.random_weights(meta, 0).items()}
    del weights["pos_emb.inv_freq"]
    network = rate_agent(model, infer_spec(weights, env)).double()
    convert_weights(weights, network)

    windows = Windows(batch_size, steps * segments)
    curriculum = getattr(config, "curriculum", CurriculumOptions())
    _, schedule = experiment.plan(options, curriculum, model, lambda count: (windows, windows), [segments], steps)
    trainer = Trainer(network, options, schedule)

    batches = make_batches(meta)
    expected = reference.training_losses(
        weights,
        meta,
        [plain for _, plain in batches],
        learning_rate=options.learning_rate,
        betas=(options.beta_1, options.beta_2),
        weight_decay={"atari": 0.01}.get(env, 0.1),
        clip=1.0,
        rate=rate,
    )
    for (batch, _), losses in zip(batches, expected, strict=True):
        starts = range(0, steps * segments, steps)
        counts = [int(batch.valid[:, start : start + steps].sum()) for start in starts]
        mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        assert float(trainer.train_batch(batch)["train_loss"]) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("env", SCRIPTS)
def test_published_setting_is_printed_and_typed_flags_win(env, capsys):
    script = SCRIPTS[env][0]
    plain = to_flat_dict(script.read_config(tiny(env)))
    capsys.readouterr()
    typed = tiny(env, "--published", "--bptt_segments", "1", "--slide", "1")
    published = to_flat_dict(script.read_config(typed))
    said = capsys.readouterr().err
    changed = {name for name, value in published.items() if value != plain[name]}
    assert {"bptt_segments", "weight_decay_on", "initialisation"} <= changed
    assert changed <= script.PUBLISHED.keys(), "nothing else is touched"
    assert "--weight_decay_on all --initialisation published" in said
    assert "overridden by typed flags: --bptt_segments 1 (published: 0)" in said and published["bptt_segments"] == 1
    assert "published" not in published, "it sets flags and is not recorded itself"


def test_published_setting_overrides_config_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("curr: adaptive\nepochs: 3\n")
    config = train_script(train_tmaze).read_config(["--config", str(path), "--published", "true"])
    assert config.curriculum.curr == "false" and config.train.epochs == 3
    assert f"overrides {path}: --curr adaptive" in capsys.readouterr().err


@pytest.mark.parametrize("declared", ["file", "dictionary"])
def test_own_environment_declares_published_values(tmp_path, declared):
    values = {"learning_rate": 0.5, "seed": 7}
    members = {"folder": tmp_path, "__module__": __name__}
    if declared == "file":
        (tmp_path / "published.yaml").write_text("learning_rate: 0.5\nseed: 7\n")
    else:
        members["published"] = values
    (tmp_path / "config.yaml").write_text("learning_rate: 0.25\n")
    environment = type("Own", (CartPole,), members)()
    assert environment.published_values() == (PUBLISHED_TRAINING if declared == "file" else {}) | values
    config = to_flat_dict(environment.read_config(["--published", "true"]))
    assert (config["learning_rate"], config["seed"]) == (0.5, 7)
    assert config["weight_decay_on"] == ("all" if declared == "file" else "matrices")
    assert to_flat_dict(environment.read_config([]))["learning_rate"] == 0.25


def test_published_initial_weights():
    model = small_model()
    torch.manual_seed(0)
    initialise_as_published(model)
    assert torch.equal(model.memory.memory_tokens, model.memory.memory_tokens[:1].expand_as(model.memory.memory_tokens))
    assert 0.8 < float(model.memory.memory_tokens.detach()[0].std()) < 1.4
    project = model.head.project.weight
    assert float(project.detach().abs().max()) <= project.shape[1] ** -0.5


def test_run_without_these_flags_resumes(tmp_path):
    script = train_script(train_tmaze)
    config = script.read_config(["--output_dir", str(tmp_path), "--resume", "auto", "--seed", "1"])
    directory = script.run_directory(config, 1)
    save_small_model(small_model(), directory)
    new = ("weight_decay_on", "initialisation")
    flags = {name: value for name, value in to_flat_dict(config).items() if name not in new}
    (directory / "config.yaml").write_text(to_yaml(flags))
    assert script.check(config, 1).checkpoint is not None
    other = script.read_config(["--resume", str(directory), *"--seed 1 --weight_decay_on all".split()])
    with pytest.raises(UserError, match="weight_decay_on was matrices, now all"):
        script.check(other, 1)
