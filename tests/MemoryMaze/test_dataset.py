"""Memory Maze data: options, where files are searched, Dreamer's episodes, windows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MemoryMaze.MemoryMaze_src import dataset
from MemoryMaze.MemoryMaze_src.dataset import (
    DATA,
    DataOptions,
    check_windows,
    load_windows,
)
from MemoryMaze.MemoryMaze_src.env import NUM_ACTIONS, OBSERVATION_SHAPE
from RATE_model.cli.options import parse_options
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from tests import commands
from tests.memory_maze_runs import EPISODES, STEPS, episode, write_data


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory with an empty wandb_config.yaml: the repository's own may name data."""
    monkeypatch.chdir(tmp_path)
    Path("wandb_config.yaml").touch()


# --- which file ---


def test_file_names_contain_all_settings():
    options = DataOptions()
    assert DATA.path(options).parent == DATA.directory and DATA.path(options).suffix == ".h5"
    changes = [{"size": 11}, {"episodes": 50}, {"steps": 500}, {"mix": ("planner:0.2:1",)}, {"mix": ("planner:0:2",)}]
    changes.append({"perturbation": 0.3})
    names = {DATA.path(options).name} | {DATA.path(replace(options, **change)).name for change in changes}
    assert len(names) == 7
    ends = {0.0: "", 0.05: "_perturbation0.05", 0.1: "_perturbation0.1", 0.5: "_perturbation0.5", 1.0: "_perturbation1"}
    for value, end in (ends | {0.1000001: "_perturbation0.1000001"}).items():
        assert DATA.file_name(replace(options, mix=("planner:0:1",), perturbation=value)) == (
            f"memory_maze_9x9_planner-0-1{end}_n200.h5"
        )
    for name in (DATA.path(replace(options, mix=("planner:0.2:1", "explorer:0:3"))).name, *names):
        assert not set(name) & set(":/ ")
    same = replace(options, windows="published", alignment="last", learn="expert")
    assert DATA.path(same) == DATA.path(options)


def test_missing_data_is_made_once(tmp_path, monkeypatch, capsys):
    made = []

    def generate(recipe, episodes, path, **options):
        made.append((recipe, episodes, path, options))
        write_data(path)

    monkeypatch.setattr(dataset, "generate", generate)
    options = DataOptions(
        size=11, steps=12, episodes=10, mix=("explorer:0.2:1",), perturbation=0.4, data_dir=tmp_path / "data"
    )
    assert DATA.ensure(options) == DATA.ensure(options) == DATA.path(options)
    (((recipe, episodes, path, rest)),) = made
    assert (recipe.size, recipe.steps, recipe.mix, recipe.perturbation, episodes, path, rest) == (
        *(11, 12, ("explorer:0.2:1",), 0.4), 10, DATA.path(options), {"overwrite": False, "workers": None},
    )  # fmt: skip
    assert capsys.readouterr().out == f"Making 10 Memory Maze episodes: {path}\n"


def test_data_of_other_experts_is_not_reused(tmp_path, monkeypatch):
    options = DataOptions(data_dir=tmp_path)
    path = write_data(DATA.path(options))
    monkeypatch.setattr(dataset, "EXPERTS_VERSION", dataset.EXPERTS_VERSION + 1)
    message = rf"^'{path}' was made by version \d+ of the experts; this is version \d+\. Give another.*--data_path"
    with pytest.raises(UserError, match=message):
        DATA.ensure(options)
    assert DATA.ensure(replace(options, data_path=path)) == path, "where it is named it is taken"
    rewarded(path, [3], {})
    with pytest.raises(UserError, match="version unknown of the experts"):
        DATA.ensure(options)


def test_data_from_flag_then_wandb_config_then_own(tmp_path, capsys):
    assert DATA.source(DataOptions()) is None
    Path("wandb_config.yaml").write_text(f"memory_maze:\n  data: {tmp_path}/given.h5\n")
    write_data(tmp_path / "given.h5", 2)
    write_data(tmp_path / "other.h5", 2)
    assert DATA.ensure(DataOptions()) == tmp_path / "given.h5"
    assert DATA.ensure(DataOptions(data_path=tmp_path / "other.h5")) == tmp_path / "other.h5"
    assert capsys.readouterr().out.splitlines() == [
        f"Data: {tmp_path / 'given.h5'} (memory_maze: data: of wandb_config.yaml)"
    ]
    (tmp_path / "given.h5").unlink()
    with pytest.raises(UserError, match=r"^memory_maze: data: of wandb_config.yaml '.*given.h5': does not exist"):
        DATA.ensure(DataOptions())
    with pytest.raises(UserError, match=r"^--data_path 'nowhere': does not exist"):
        DATA.ensure(DataOptions(data_path=Path("nowhere")))


def test_alignment_is_typed_for_folders_only(tmp_path):
    write_data(tmp_path / "a.h5", 2)
    with pytest.raises(UserError, match="--alignment last: only applies to a folder"):
        parse_options(DATA.flags, argv=["--alignment", "last", "--data_path", str(tmp_path / "a.h5")])
    parse_options(DATA.flags, argv=["--alignment", "last", "--data_path", str(dreamer(tmp_path / "dreams"))])
    Path("wandb_config.yaml").write_text(f"memory_maze:\n  data: {tmp_path}/dreams\n")
    parse_options(DATA.flags, argv=["--alignment", "last"])


# --- Dreamer's episodes ---


def dreamer(folder: Path, name: str = "image", *, first: bool = False, steps: int = STEPS) -> Path:
    """A folder with two episodes of T + 1 rows: picture, one-hot action that led to it, reward. The first row has no
    action, or with ``first`` an ordinary one."""
    folder.mkdir()
    for seed in range(2):
        observations, actions, rewards = episode(seed, steps)
        last = np.full((1, *OBSERVATION_SHAPE), 7, dtype=np.uint8)
        nothing = np.eye(1, NUM_ACTIONS) * first
        arrays = {
            name: np.concatenate([observations, last]).transpose(0, 2, 3, 1),
            "action": np.concatenate([nothing, np.eye(NUM_ACTIONS)[actions]]).astype(np.float32),
            "reward": np.concatenate([[0], rewards]).astype(np.float32),
        }
        np.savez_compressed(folder / f"2024010{seed}T000000-{seed}-{steps + 1}.npz", **arrays)
    return folder


@pytest.mark.parametrize("name", ["image", "obs"])
def test_action_is_aligned_with_dreamers_next_picture(tmp_path, name):
    path = DATA.ensure(DataOptions(data_path=dreamer(tmp_path / "dreams", name), data_dir=tmp_path / "data"))
    file = DATA.open(path)
    assert file.lengths.tolist() == [STEPS, STEPS] and path.parent == tmp_path / "data"
    for seed, start in enumerate(file.starts):
        observations, actions, rewards = episode(seed)
        found, taken = file.read(start, start + STEPS)
        np.testing.assert_array_equal(found, observations)
        assert taken.tolist() == actions.tolist()
        assert file.rewards[start : start + STEPS].tolist() == rewards.tolist()


def test_unknown_alignment_must_be_given(tmp_path):
    options = DataOptions(data_path=dreamer(tmp_path / "dreams", first=True), data_dir=tmp_path / "data")
    with pytest.raises(UserError, match="--alignment last, causal or replay"):
        DATA.ensure(options)
    _, actions, _ = episode(0)
    for alignment, expected in (("last", actions.tolist()), ("causal", [0, *actions])):
        path = DATA.ensure(replace(options, alignment=alignment))
        file = DATA.open(path)
        assert file.actions[: file.lengths[0]].tolist() == expected


def test_causal_alignment_is_the_published_pairing(tmp_path):
    """The authors' loader: row i's picture with row i's action, and rewards from row i on; two or more in a window."""
    folder, steps = dreamer(tmp_path / "dreams"), 3
    options = DataOptions(data_path=folder, data_dir=tmp_path / "data", alignment="causal")
    file = DATA.open(DATA.ensure(options))
    for number, path in enumerate(sorted(folder.glob("*.npz"))):
        rows = np.load(path)
        start = file.starts[number]
        for row in range(len(rows["reward"]) - steps + 1):
            found, taken = file.read(start + row, start + row + steps)
            np.testing.assert_array_equal(found, rows["image"][row : row + steps].transpose(0, 3, 1, 2))
            assert taken.tolist() == rows["action"][row : row + steps].argmax(-1).tolist()
            to_go = file.returns_to_go()[start + row : start + row + steps]
            np.testing.assert_allclose(to_go, np.cumsum(rows["reward"][::-1])[::-1][row : row + steps])


@pytest.mark.parametrize(("layout", "alignment"), [("chunks", "causal"), ("chunks", "replay"), ("pydreamer", "causal")])
def test_chunks_of_several_episodes_are_split(tmp_path, layout, alignment):
    """Three files of 25 rows, cut from episodes of 10; every picture, action and reward encodes its episode."""
    step = np.arange(75)
    number, folder = step // 10, tmp_path / layout
    folder.mkdir()
    rows = {"action": np.eye(NUM_ACTIONS)[number % NUM_ACTIONS], "reward": number.astype(np.float32)}
    rows |= {"reset" if layout == "pydreamer" else "is_first": step % 10 == 0, "is_last": step % 10 == 9}
    rows |= {"is_terminal": np.zeros(75, bool)}
    pictures = np.broadcast_to(number[:, None, None, None].astype(np.uint8), (75, 64, 64, 3))
    for start in (0, 25, 50):
        piece = {name: values[start : start + 25] for name, values in rows.items()}
        shown = pictures[start : start + 25]
        shown = {"image_t": shown.transpose(1, 2, 3, 0)} if layout == "pydreamer" else {"image": shown}
        np.savez_compressed(folder / f"ep{start:04d}-25.npz", **piece, **shown)
    path = DATA.ensure(DataOptions(data_path=folder, data_dir=tmp_path / "data", alignment=alignment))
    file = DATA.open(path)
    whole, short = (9, 4) if alignment == "replay" else (10, 5)
    assert file.lengths.tolist() == [whole, whole, short, whole, whole, whole, whole]
    expected = np.repeat([0, 1, 2, 3, 4, 5, 6], file.lengths)
    np.testing.assert_array_equal(file.load()[0][:, 0, 0, 0], expected)
    np.testing.assert_array_equal(file.actions, expected % NUM_ACTIONS)
    assert file.returns_to_go()[file.starts].tolist() == [n * length for n, length in enumerate(file.lengths)]


def test_alignment_of_rewards_must_be_given(tmp_path):
    folder = dreamer(tmp_path / "dreams")
    for path in folder.iterdir():
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"action": np.roll(arrays["action"], -1, axis=0), "reward": arrays["reward"] + 1})
    with pytest.raises(UserError, match="--alignment replay"):
        DATA.ensure(DataOptions(data_path=folder, data_dir=tmp_path / "data", alignment="causal"))


# --- windows ---


def rewarded(path: Path, lengths: list[int], rewards: dict[int, list[int]]) -> Path:
    """Episodes of these lengths with rewards of 1 at the steps {episode: steps}."""
    with TrajectoryWriter(
        path, observation_shape=OBSERVATION_SHAPE, observation_dtype="uint8", attributes={}
    ) as writer:
        for number, length in enumerate(lengths):
            values = np.zeros(length, np.float32)
            values[rewards.get(number, [])] = 1
            blank = np.zeros((length, *OBSERVATION_SHAPE), np.uint8)
            writer.add_episode(blank, np.zeros(length, int), values, terminal=False)
    return path


def rows(*sides) -> list[list[int]]:
    return sorted(row for side in sides for row in side.windows.tolist())


def test_all_windows_begin_at_every_step(tmp_path):
    path = write_data(tmp_path / "a.h5")
    training, validation = load_windows([path], size=5)
    held_out = {start // STEPS for _, start, _ in validation.windows}
    assert len(held_out) == 1, "a tenth of the episodes"
    everywhere = [[0, e * STEPS + s, 5] for e in range(EPISODES) if e not in held_out for s in range(STEPS - 4)]
    assert rows(training) == everywhere
    (number,) = held_out
    assert rows(validation) == [[0, number * STEPS, 5], [0, number * STEPS + 5, 5]], "side by side"


def test_returns_to_go_are_those_of_the_whole_episode(tmp_path):
    training, _ = load_windows([write_data(tmp_path / "a.h5")], size=5)
    batch = training.__getitems__(range(0, len(training), 7))
    for (_, start, _), rtg in zip(training.windows[::7], batch.rtg.tolist(), strict=True):
        rewards = episode(start // STEPS)[2][start % STEPS :]
        assert rtg == [rewards[step:].sum() for step in range(5)]
    assert max(rtg[-1] for rtg in batch.rtg.tolist()) > 1, "some lies behind the windows"


def test_published_windows_are_those_that_the_published_loop_keeps(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    lengths = [700, 410, 100, 620, 89, 500, 700, 700, 333, 700]
    rewards = {number: sorted(rng.choice(length, length // 50, replace=False)) for number, length in enumerate(lengths)}
    path = rewarded(tmp_path / "a.h5", lengths, rewards)
    expected, start = [], 0
    for number, length in enumerate(lengths):
        for i in range(0, 500 - 90, 90):
            inside = sum(i <= step < i + 90 for step in rewards[number])
            if i + 90 <= length and inside >= 2:
                expected.append([0, start + i, 90])
        start += length
    training, validation = load_windows([path], size=90, windows="published", fraction=0.9)
    all_training, all_validation = load_windows([path], size=90)
    starts = np.cumsum([0, *lengths])
    held_out = set(np.searchsorted(starts, all_validation.windows[:, 1], side="right") - 1)
    kept = [row for row in expected if np.searchsorted(starts, row[1], side="right") - 1 not in held_out]
    assert rows(training) == kept and len(kept) > 5
    assert rows(validation) == rows(all_validation), "what is validated on does not depend on what is trained on"


def test_missing_windows_are_an_error(tmp_path):
    path = rewarded(tmp_path / "a.h5", [100] * 10, {0: [3]})
    with pytest.raises(UserError, match="--windows published leaves nothing to train on: no window of 90 steps"):
        load_windows([path], size=90, windows="published")
    with pytest.raises(UserError, match="no window of 101 steps"):
        load_windows([path], size=101)


# --- the command ---


def test_command_follows_its_flags(tmp_path, monkeypatch, capsys):
    made = []

    def generate(recipe, episodes, path, *, overwrite, workers):
        made.append((recipe.size, recipe.steps, episodes, overwrite, workers))
        write_data(path, episodes)

    monkeypatch.setattr(dataset, "generate", generate)
    output = tmp_path / "new.h5"
    dataset.main(["--episodes", "10", "--size", "13", "--steps", "40", "--output", str(output), "--workers", "3"])
    dataset.main(["--episodes", "11", "--data_dir", str(tmp_path / "data"), "--overwrite"])
    assert made == [(13, 40, 10, False, 3), (9, 1000, 11, True, None)]
    printed = capsys.readouterr().out.splitlines()
    mean = np.mean([episode(seed)[2].sum() for seed in range(10)])
    assert printed[0].startswith(f"{output}: 10 episodes of 12 steps, mean return {mean:.2f} (")
    assert printed[1].startswith(str(DATA.path(DataOptions(episodes=11, data_dir=tmp_path / "data"))))


def test_expert_actions_can_be_targets(tmp_path):
    path = write_data(tmp_path / "data.h5")
    taken, learned = (
        load_windows([path], size=5, learn=learn)[0].__getitems__([3]) for learn in ("recorded", "expert")
    )
    assert taken.labels is None and torch.equal(learned.actions, taken.actions)
    assert not torch.equal(learned.labels, taken.actions)
    converted = DATA.ensure(DataOptions(data_path=dreamer(tmp_path / "dreams"), data_dir=tmp_path / "data"))
    with pytest.raises(UserError, match=r"no 'infos/expert_action'.*--learn recorded"):
        load_windows([converted], size=5, learn="expert", fraction=0.5)
    folder = DataOptions(data_path=tmp_path / "dreams", learn="expert")
    with pytest.raises(
        UserError,
        match=r"^--learn expert: the files in --data_path '.*dreams' have only .*--learn recorded",
    ):
        check_windows(folder, 5)
    for fine in (replace(folder, learn="recorded"), replace(folder, data_path=converted)):
        check_windows(fine, 5)


def test_the_command_converts_a_folder(tmp_path, capsys):
    flags = ["--data_path", str(dreamer(tmp_path / "dreams")), "--output", str(tmp_path / "new.h5")]
    dataset.main(flags)
    assert f"{tmp_path / 'new.h5'}: 2 episodes of 12 steps" in capsys.readouterr().out
    before = (tmp_path / "new.h5").stat().st_mtime_ns
    dataset.main([*flags, "--overwrite"])
    assert (tmp_path / "new.h5").stat().st_mtime_ns > before


MISTAKES = {
    "perturbation too much": ("--perturbation 1.1", ("--perturbation 1.1", "at most 1")),
    "size": ("--size 10", ("--size 10", "9, 11, 13, 15")),
    "few episodes": ("--episodes 9", ("--episodes 9", "at least 10")),
    "no steps": ("--steps 0", ("--steps 0", "at least 1")),
    "player": ("--mix runner:0:1", ("--mix runner:0:1", "explorer or planner")),
    "no workers": ("--workers 0", ("--workers 0", "at least 1")),
    "name": ("--output data.npz", ("--output 'data.npz'", ".h5")),
    "no folder": ("--data_path nowhere", ("--data_path 'nowhere'", "folder")),
    "nothing to align": ("--alignment causal", ("--alignment causal", "folder of episodes", "--data_path")),
    "alignment": ("--alignment next", ("--alignment next", "auto, last, causal")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_and_create_nothing(mistake, tmp_path, capsys):
    flags, named = MISTAKES[mistake]
    flags = [*flags.split(), "--data_dir", str(tmp_path / "data")]
    message = commands.error_of(capsys, tmp_path, dataset.main, flags)
    assert [word for word in named if word not in message] == []


def test_options_have_the_defaults_that_the_readme_names():
    options = parse_options(DATA.flags, argv=[])
    assert (options.data.size, options.data.episodes, options.data.steps) == (9, 200, 1000)
    assert options.data.windows == "all" and options.data.alignment == "auto"
