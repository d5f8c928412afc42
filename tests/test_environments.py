"""The contract of an environment, for all registered ones and an external one."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from gymnasium.utils.env_checker import check_env

from RATE_model.acting.vector import step_limit
from RATE_model.agent import Agent
from RATE_model.cli import evaluation, training
from RATE_model.cli.options import to_flat_dict, to_yaml
from RATE_model.data.batch import Batch
from RATE_model.data.maker import DataMaker
from RATE_model.environments.contract import Environment, Evaluation
from RATE_model.errors import UserError
from RATE_model.protocol.examination import RunPlayer, facts_of, task_cases_of
from RATE_model.protocol.verdict import INTACT, judge
from RATE_model.protocol.verdict import Case as ProtocolCase
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests import environments
from tests.environments import MODEL, SMALL
from tests.small_models import save_small_model


@pytest.fixture(params=environments.names())
def name(request) -> str:
    return request.param


@pytest.fixture
def environment(name) -> Environment:
    return environments.load(name)


@pytest.fixture
def config(name, environment):
    """Small flags."""
    channels = ["--conv_channels", "2", "2", "2"] if "conv_channels" in to_flat_dict(environment.config()) else []
    return environment.read_config([*MODEL, *channels, *SMALL[name][0].split()])


def options_of(name: str, environment: Environment):
    """Evaluation options: the published game, small."""
    argv = ["--checkpoint", "nowhere", *SMALL[name][1].split()]
    cls = evaluation.options_class(environment.play_options)
    return evaluation.parse_options(cls, argv=argv).play


def agent_of(environment: Environment, config) -> Agent:
    torch.manual_seed(3)
    return Agent(config.agent_config(), environment.spec(to_flat_dict(config))).eval()


def random_batch(spec: EnvironmentSpec, steps: int) -> Batch:
    rng, shape = np.random.default_rng(0), (2, steps)
    seen = rng.integers(256, size=(*shape, *spec.observation_shape), dtype=np.uint8) if spec.is_image else None
    observations = rng.normal(size=(*shape, *spec.observation_shape)).astype(np.float32) if seen is None else seen
    size = (*shape, spec.num_actions) if spec.continuous else shape
    actions = (
        rng.uniform(-1, 1, size).astype(np.float32) if spec.continuous else rng.integers(spec.num_actions, size=size)
    )
    return Batch(
        torch.from_numpy(observations), torch.from_numpy(actions), torch.ones(shape),
        torch.ones(shape, dtype=torch.bool), torch.full((2,), steps), torch.arange(2),
    )  # fmt: skip


def test_gymnasium_accepts_the_environment(name, environment):
    options = options_of(name, environment)
    case = environment.cases(options)[0]
    scene = environment.make(case, options)
    check_env(scene.unwrapped, skip_render_check=True)
    assert step_limit(scene) >= 1


def test_spaces_match_the_spec(name, environment, config):
    options = options_of(name, environment)
    spec, rows = (
        environment.spec(to_flat_dict(config)),
        environment.vector(np.array(environment.cases(options)[:1]), options),
    )
    observations, actions = rows.single_observation_space, rows.single_action_space
    assert observations.shape == spec.observation_shape
    assert (observations.dtype == np.uint8) == spec.is_image
    assert actions.shape == ((spec.num_actions,) if spec.continuous else ())
    assert spec.continuous or actions.n == spec.num_actions
    rows.close()


def test_vector_equals_single_environments(name, environment):
    options, rng = options_of(name, environment), np.random.default_rng(0)
    cases = [*environment.cases(options)[:2]] * 2
    seeds = environment.seeds(environment.episode_counts[0] + environment.episode_counts.step)[:2]
    seeds = np.resize(seeds, len(cases))
    extra = environment.reset_options(seeds, options)
    rows, singles = environment.vector(np.array(cases), options), [environment.make(case, options) for case in cases]
    observations, _ = rows.reset(seed=seeds, options=extra or None)
    for row, single in enumerate(singles):
        given = {key: values[row] for key, values in extra.items()} or None
        np.testing.assert_array_equal(single.reset(seed=int(seeds[row]), options=given)[0], observations[row])
    rows.single_action_space.seed(0)
    over = np.zeros(len(cases), dtype=bool)
    for _ in range(int(np.max(rows.max_steps))):
        actions = np.array([rows.single_action_space.sample() for _ in cases])
        observations, rewards, terminated, truncated, _ = rows.step(actions)
        for row in np.flatnonzero(~over):
            expected = singles[row].step(actions[row])
            np.testing.assert_array_equal(expected[0], observations[row])
            assert (rewards[row], terminated[row], truncated[row]) == pytest.approx(expected[1:4])
        over = terminated | truncated
        if over.all() or rng.random() < 0.02:
            break
    rows.close()


def test_published_training_has_unperturbed_data(environment, tmp_path):
    """It learns from recorded actions, those of a flawed expert included."""
    if not environment.published_values():
        pytest.skip("has no published training")
    flaws = getattr(environment.config().data, "flaws", ())
    setting = tmp_path / "setting.yaml"
    setting.write_text("".join(f"{name}: 0.5\n" for name in flaws) or "text: any\n")
    flags = to_flat_dict(environment.read_config(["--config", str(setting), "--published", "true"]))
    assert [flags[name] for name in flaws] == [0.0] * len(flaws)


def test_seeds_are_distinct_and_never_those_of_data(environment):
    counts = environment.episode_counts
    seeds = environment.seeds(counts[-1])
    assert len(seeds) == counts[-1] and len(set(seeds.tolist())) >= counts[-1] - 1
    assert not any(seed in environment.data_seeds for seed in seeds.tolist())
    few = environment.seeds(counts[0])
    assert len(few) == counts[0] and set(few.tolist()) <= set(seeds.tolist())


def test_evaluation_is_determined_by_its_seed(name, environment, config):
    options, agent = options_of(name, environment), agent_of(environment, config)
    episodes = environment.episode_counts[0] + environment.episode_counts.step

    def play(seed: int = 0):
        asked = Evaluation(
            environment, agent, options, environment.target_returns({}), environment.cases(options)[:1], episodes, seed
        )
        ((found,),) = (by_case.values() for by_case in asked.play().values())
        case = asked.cases[0]
        assert all(np.isfinite(value) for value in environment.figures(case, found, asked).values())
        return found

    first, again = play(), play()
    np.testing.assert_array_equal(first.returns, again.returns)
    np.testing.assert_array_equal(first.lengths, again.lengths)


def test_memory_declarations_are_consistent(name, environment, config):
    """Successes are between 0 and 1, with a chance level and horizons; returns get a verdict without them."""
    options, agent = options_of(name, environment), agent_of(environment, config)
    episodes = environment.episode_counts[0] + environment.episode_counts.step
    targets = environment.target_returns({})[:1]
    asked = Evaluation(environment, agent, options, targets, tuple(environment.cases(options)[:2]), episodes)
    answers, task_cases = RunPlayer(asked).play(None), task_cases_of(asked)
    for task_case, outcomes in zip(task_cases, answers, strict=True):
        assert not task_case.horizons or 1 < task_case.horizons[0] <= task_case.horizons[1]
        assert len(outcomes) == episodes * (2 if environment.has_twins(options) else 1)
        if environment.outcome == "success":
            assert task_case.horizons and 0 <= task_case.chance < 1 and np.all((outcomes >= 0) & (outcomes <= 1))
    cases = [
        ProtocolCase(task_case.name, task_case.horizons, task_case.chance, {INTACT: outcomes[None]}, task_case.outcome)
        for task_case, outcomes in zip(task_cases, answers, strict=True)
    ]
    verdict = judge(facts_of(agent), cases)
    assert verdict.label in ("nothing", "unproved", "short-term") and verdict.missing


def test_every_configuration_trains_one_step(name, environment, config):
    files = sorted(environment.folder.glob("config*.yaml"))
    assert files
    for file in files:
        chosen = environment.read_config(["--config", str(file)])
        flags = to_flat_dict(chosen)
        trainer = Trainer(
            Agent(chosen.agent_config(), environment.spec(flags)), chosen.train, Schedule(1, None, 1, 0.1)
        )
        steps = min(chosen.context_length * chosen.segments, 2 * chosen.context_length)
        metrics = trainer.train_batch(random_batch(environment.spec(flags), steps))
        assert torch.isfinite(metrics["train_loss"]), file


def test_inference_settings_default_to_training(name, environment, config, tmp_path):
    """Shared flags with other values reach training and inference alike."""
    changed = {"eval_episodes": environment.episode_counts[1], "target_return": 0.25, "slide": 3, "use_argmax": False}
    flags = to_flat_dict(config) | changed | {"reset_target": True, "precision": "bf16"}
    agent = agent_of(environment, config)
    save_small_model(agent, tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(flags))
    trained = evaluation.evaluation_of(environment, agent, flags, cases=(None,))
    options, recorded = evaluation.read_options(environment, ["--checkpoint", str(tmp_path)])
    assert options.play == trained.options and options.common.episodes == trained.episodes
    assert options.common.target_return == tuple(trained.targets) == (0.25,)
    assert options.common.precision == trained.precision == "bf16" and options.play.slide == 3
    shared = set(flags) & set(to_flat_dict(options.play))
    assert {"reset_target", "use_argmax", "slide"} <= shared
    assert all(to_flat_dict(options.play)[flag] == flags[flag] for flag in shared)


def test_data_matches_the_environment(name, environment, config, tmp_path):
    flags = to_flat_dict(config)
    config = environment.read_config([*MODEL, *SMALL[name][0].split(), *environments.data_flags(name, tmp_path)])
    data = environment.load(config)
    training_windows, validation = data.windows(data.stages[-1])
    batch = training_windows.__getitems__([0, 1])
    logits, _ = Agent(config.agent_config(), data.spec)(batch.observations, batch.actions, batch.rtg, batch.valid)
    assert logits.shape == (*batch.valid.shape, data.spec.num_actions) and logits.isfinite().all()
    assert data.spec.continuous or int(batch.actions.max()) < data.spec.num_actions
    assert environment.spec(flags).observation_shape == data.spec.observation_shape
    assert not {tuple(window) for window in training_windows.windows} & {tuple(window) for window in validation.windows}


@pytest.mark.parametrize("name", environments.runs())
def undocumented(metrics: Iterable[str]) -> set[str]:
    """The metrics that match no name on the page of metrics; {R} stands for a number, ... for anything."""
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    shown = [re.escape(name).replace(r"\.\.\.", ".*") for name in re.findall(r"`([^` ]+)`", page)]
    known = [re.compile(re.sub(r"\\\{\w+\\\}", r"-?[0-9.]+", name)) for name in shown]
    return {name for name in metrics if not any(each.fullmatch(name.removeprefix("FINAL_")) for each in known)}


def test_a_run_from_flags_to_pictures(name, environment, tmp_path, capsys):
    flags = (
        f"--epochs 1 --batch_size 4 --end_seed 1 --device cpu --wandb_mode disabled --eval_episodes 4 {SMALL[name][0]}"
    )
    places = [*environments.data_flags(name, tmp_path), "--output_dir", str(tmp_path / "runs")]
    assert training.main(environment, [*MODEL, *flags.split(), *places]) == 0
    (run,) = (path.parent for path in tmp_path.glob("runs/*/*/config.yaml"))
    final = yaml.safe_load((run / "eval" / "final.json").read_text())
    said = capsys.readouterr().out
    shown = environment.headlines(environment.read_config([*MODEL, *flags.split(), *places]))
    assert shown and set(shown) <= final.keys(), "the console has the names of the files"
    assert all(f"{headline} {final[headline]:.3g}" in said for headline in shown)
    assert (run / "plots" / "curves.png").exists()
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert name.startswith("tests.") or not undocumented({*final}.union(*logged))
    output = tmp_path / "out.json"
    asked = ["--checkpoint", str(run), "--device", "cpu", "--output", str(output), *SMALL[name][1].split()]
    evaluation.main(environment, [*asked, "--video", "1", "--pictures", str(tmp_path / "pictures")])
    assert yaml.safe_load(output.read_text())["results"]
    pictures = [path.suffix for path in (tmp_path / "pictures").iterdir()]
    assert ".png" in pictures and ".mp4" in pictures


def test_data_script_reads_the_config_file_of_training(environment, tmp_path):
    """It ignores what only training has, and what means something else there; it refuses what neither has."""
    setting = Path(__file__).resolve().parents[1] / Path(environment.train_script).parent / "config_fast.yaml"
    package = type(environment).__module__.rpartition(".")[0]
    found = [importlib.util.find_spec(f"{package}.{name}") for name in ("dataset", "generate_dataset")]
    makers = [getattr(importlib.import_module(each.name), "DATA", None) for each in found if each is not None]
    makers = [maker for maker in makers if isinstance(maker, DataMaker)]
    if not makers or not setting.exists():
        pytest.skip("has no data script, or no fast setting")
    file = tmp_path / "setting.yaml"
    file.write_text(f"{setting.read_text()}\noverwrite: true\noutput_dir: runs\n")
    options = getattr(sys.modules[type(makers[0]).__module__], "Options", None)  # T-Maze's script has flags of its own
    aliases = {"output_dir": "data_dir"} if options else {}
    made = to_flat_dict(makers[0].read_flags(["--config", str(file)], options, **aliases))
    trained = to_flat_dict(environment.read_config(["--config", str(file)]))
    shared = made.keys() & trained.keys() & yaml.safe_load(file.read_text()).keys() - {"overwrite"}
    assert shared and {name: made[name] for name in shared} == {name: trained[name] for name in shared}
    assert made["overwrite"] is False and made["data_dir"] is None
    with file.open("a") as text:
        text.write("learning_rte: 3\n")
    with pytest.raises(UserError, match="unknown key 'learning_rte'.*learning_rate"):
        makers[0].read_flags(["--config", str(file)], options, **aliases)
