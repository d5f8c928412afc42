"""ViZDoom data: the command, files and their seeds, continuing after an interruption, published files, loading."""

import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("vizdoom")

from RATE_model.data.parts import _is_done as is_done
from RATE_model.errors import UserError
from VizDoom.VizDoom_src import dataset
from VizDoom.VizDoom_src import generate as generating
from VizDoom.VizDoom_src.dataset import DATA, DataOptions, main
from VizDoom.VizDoom_src.expert import PerturbedExpert
from VizDoom.VizDoom_src.generate import Recipe, generate, job_of
from VizDoom.VizDoom_src.scenario import Scenario
from VizDoom.VizDoom_src.seeds import GREEN_SEEDS, RED_SEEDS

SCRIPT = Path(__file__).resolve().parents[2] / "VizDoom" / "VizDoom_src" / "dataset.py"
FLAWS = ["--noise", "0.2", "--perturbation", "0.4"]
HERE = ("--graphics", "installed")  # of this session; see conftest.py
QUICK = Recipe(Scenario(), 12, "limited", 0.2, 0.4)


def content(path):
    """All arrays of a file except the checksums, and its attributes."""
    with h5py.File(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item[:]}) if isinstance(item, h5py.Dataset) else None)
        return {name: array for name, array in arrays.items() if "checksums" not in name}, dict(file.attrs)


def assert_same_content(path, other):
    (arrays, attributes), (others, other_attributes) = content(path), content(other)
    assert arrays.keys() == others.keys() and attributes == other_attributes
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)


def test_file_contains_the_experts_episodes(game, tmp_path):
    path = generate(QUICK, 23, tmp_path / "new" / "data.h5", workers=1)
    assert [entry.name for entry in path.parent.iterdir()] == ["data.h5"]
    arrays, _ = content(path)
    assert set(arrays) == {
        *("observations", "actions", "rewards", "terminals", "timeouts"),
        *("infos/is_red", "infos/seed", "infos/health", "infos/expert_action", "infos/pillar", "infos/items"),
        *("infos/agent_pos", "infos/agent_dir", "infos/velocity", "infos/right_vec", "infos/wrong_vec"),
    }
    assert arrays["observations"].shape == (23 * 12, 3, 64, 112) and arrays["observations"].dtype == np.uint8
    assert arrays["infos/is_red"][::12].tolist() == [1, 0] * 11 + [1]
    seeds = arrays["infos/seed"][::12]
    assert len(set(seeds)) == 23 and seeds.min() >= 1_000_000 > max(RED_SEEDS + GREEN_SEEDS)
    env = game(max_steps=12, privileged=True)
    for start, seed in zip(range(0, 23 * 12, 12), seeds, strict=True):
        observation, info = env.reset(seed=int(seed))
        player = PerturbedExpert(np.random.default_rng([seed, generating.EXPERT_STREAM]), noise=0.2, perturbation=0.4)
        for step in range(start, start + 12):
            np.testing.assert_array_equal(arrays["observations"][step], observation)
            assert arrays["infos/health"][step] == info["health"] and arrays["infos/is_red"][step] == info["is_red"]
            assert (arrays["actions"][step], arrays["infos/expert_action"][step]) == player.act(env.surroundings())
            assert arrays["infos/seed"][step] == seed
            observation, reward, terminated, truncated, info = env.step(int(arrays["actions"][step]))
            assert arrays["rewards"][step] == np.float32(reward)
            assert (arrays["terminals"][step], arrays["timeouts"][step]) == (terminated, truncated)
    made = DATA.open(path).attributes
    assert made["environment"] == "VizDoomTwoColors-v0" and made["played"] == made["num_episodes"] == 23
    assert (
        made["steps"] == 12
        and (made["noise"], made["perturbation"]) == (0.2, 0.4)
        and made["variant"] == "published"
        and made["vizdoom"]
    )
    assert made["first_seed"] == 1_000_000 and made["last_seed"] == seeds[-1]


def test_parts_of_before_perturbations_had_a_length_are_used():
    """A recipe only names what differs from then."""
    assert "perturbation_steps" not in generating.job_of(QUICK).recipe
    assert generating.job_of(replace(QUICK, perturbation_steps=1)).recipe["perturbation_steps"] == 1


def test_interrupted_generation_continues(tmp_path, monkeypatch, capsys):
    whole = generate(QUICK, 45, tmp_path / "whole.h5", workers=1)
    original, made = generating.play_part, []

    def interrupted(recipe, writer, first, count):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((first, count))
        original(recipe, writer, first, count)

    path = tmp_path / "data.h5"
    monkeypatch.setattr(generating, "play_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(QUICK, 45, path, workers=1)
    parts = tmp_path / "data.h5.parts"
    assert "run the same command to continue" in capsys.readouterr().out and not path.exists()
    assert sorted(part.name for part in parts.iterdir()) == ["part_00000.h5", "part_00001.h5"]
    first = (parts / "part_00000.h5").stat().st_mtime_ns
    (parts / "part_00001.h5").write_bytes(b"damaged")
    assert is_done(job_of(QUICK), parts, 0, 20)
    for other in (replace(QUICK, scenario=Scenario(items=9)), replace(QUICK, perturbation=0.5)):
        assert not is_done(job_of(other), parts, 0, 20)
    assert not is_done(job_of(QUICK), parts, 0, 19) and not is_done(job_of(QUICK), parts, 20, 20)
    made.clear()
    monkeypatch.setattr(generating, "play_part", lambda *args: made.append(args[-2:]) or original(*args))
    assert (parts / "part_00000.h5").stat().st_mtime_ns == first
    generate(QUICK, 45, path, workers=1)
    assert "resuming with 1 of 3 parts" in capsys.readouterr().out
    assert made == [(20, 20), (40, 5)] and not parts.exists()
    assert_same_content(path, whole)


def test_killed_generation_leaves_no_process_and_continues(tmp_path):
    """The command with two processes, killed in the middle and started again, compared with an uninterrupted one."""
    psutil = pytest.importorskip("psutil")
    flags = ["--episodes", "60", "--steps", "12", *FLAWS, *HERE, "--workers", "2", "--output", "data.h5"]
    run = subprocess.Popen([sys.executable, SCRIPT, *flags], cwd=tmp_path)
    parts = tmp_path / "data.h5.parts"
    deadline = time.monotonic() + 100
    while not list(parts.glob("part_*.h5")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    started = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    while alive := [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, f"left running: {alive}"
        time.sleep(0.05)
    assert not (tmp_path / "data.h5").exists()
    done = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "resuming with" in done.stdout and "data.h5: 60 episodes of 12 steps, mean" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data.h5"]
    assert_same_content(tmp_path / "data.h5", generate(QUICK, 60, tmp_path / "whole.h5", workers=1))


def test_ctrl_c_ends_the_command_at_once(tmp_path):
    flags = ["--episodes", "1000", "--steps", "20", "--workers", "2", "--output", "data.h5", *HERE]
    run = subprocess.Popen(
        [sys.executable, SCRIPT, *flags], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not list((tmp_path / "data.h5.parts").glob(".part_*.tmp")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    said, complained = run.communicate(timeout=150)
    assert run.returncode == 130 and complained == "stopped by SIGINT\n"
    assert ("run the same command to continue" in said) == (tmp_path / "data.h5.parts").exists()


def test_episodes_that_end_early_are_dropped_and_counted(tmp_path, capsys):
    """A random player lives for about 190 steps."""
    path = tmp_path / "data.h5"
    main(["--episodes", "10", "--steps", "190", "--noise", "1", "--workers", "1", "--output", str(path)])
    file = DATA.open(path)
    dropped = file.attributes["played"] - 10
    assert (file.lengths == 190).all() and dropped > 0
    assert capsys.readouterr().out.endswith(f"; {dropped} more were too short and dropped\n")


def test_impossible_selection_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(generating, "PART_SEEDS", 6)
    with pytest.raises(
        UserError, match="in 6 seeds 0 of 4 episodes reached 700 steps.*Lower --steps, --noise or --perturbation"
    ):
        generate(Recipe(Scenario(), 700, "limited", 1.0), 4, tmp_path / "data.h5", workers=1)
    assert not list(tmp_path.rglob("*.h5"))


def published_folder(folder, lengths, **changes):
    """Write files like the published collector's, of these lengths; returns their observations."""
    folder.mkdir()
    rng, all_observations = np.random.default_rng(0), []
    for number, steps in enumerate(lengths):
        arrays = {
            "obs": rng.integers(0, 256, (steps, 3, 64, 112), dtype=np.uint8),
            "action": rng.integers(0, 5, steps),
            "reward": rng.random(steps),
            "done": np.zeros(steps, dtype=np.int64),
            "is_red": np.full(steps, float(number % 2)),
        }
        all_observations.append(arrays["obs"])
        np.savez(folder / f"train_data_{number}.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})
    return all_observations


def test_files_of_several_episodes_are_split(tmp_path):
    """Every step needs its colour; a single one for the whole file is refused."""
    folder, last = tmp_path / "several", np.isin(np.arange(12), [3, 8, 11])
    folder.mkdir()
    number = np.cumsum(np.append(0, last[:-1]))
    arrays = {"obs": np.zeros((12, 3, 64, 112), np.uint8), "action": number, "reward": number.astype(float)}
    np.savez(folder / "train_data_0.npz", **arrays, dones=last, is_red=number % 2)
    np.savez(folder / "train_data_1.npz", **arrays, is_last=last, is_red=number % 2)
    np.savez(folder / "train_data_2.npz", **arrays, done=last, is_red=1)
    path = DATA.ensure(DataOptions(data_path=folder, data_dir=tmp_path / "data"))
    file, (arrays, _) = DATA.open(path), content(path)
    assert file.lengths.tolist() == [4, 5, 3] * 2
    assert file.returns_to_go()[file.starts].tolist() == [0, 5, 6] * 2
    assert arrays["infos/is_red"].tolist() == [*(number % 2)] * 2


def test_published_files_are_converted_and_loaded(tmp_path, capsys):
    folder = tmp_path / "iterative_data"
    observations = published_folder(folder, [6, 6, 4, 6, 6, 9, 6, 6, 6, 6, 6, 6])
    options = DataOptions(data_path=folder, data_dir=tmp_path / "data")
    path = DATA.ensure(options)
    assert path.name.startswith("vizdoom_imported_iterative_data_")
    arrays, _ = content(path)
    np.testing.assert_array_equal(arrays["observations"], np.concatenate(observations))
    assert arrays["infos/is_red"][:12].tolist() == [0.0] * 6 + [1.0] * 6 and not arrays["terminals"].any()
    stamp = path.stat().st_mtime_ns
    assert DATA.ensure(options) == path and path.stat().st_mtime_ns == stamp
    capsys.readouterr()
    training, validation = DATA.whole_windows([path], size=6, shortest=6)
    assert "2 of 12 episodes are left out: they have 4 to 9 steps, not 6" in capsys.readouterr().out
    assert len(training) + len(validation) == 10
    batch = training.__getitems__([0])
    assert batch.observations.shape == (1, 6, 3, 64, 112) and batch.valid.all()
    np.testing.assert_allclose(batch.rtg[0, 0], arrays["rewards"][:6].sum(), rtol=1e-6)
    with pytest.raises(UserError, match=r"none of 12 episodes has 90 steps \(--segments times --context_length\)"):
        DATA.whole_windows([path], size=90, shortest=90)
    with pytest.raises(UserError, match=r"no 'infos/expert_action'.*--learn recorded"):
        DATA.whole_windows([path], size=6, shortest=6, learn="expert")
    with pytest.raises(
        UserError, match=r"^--learn expert: the files in --data_path .*iterative_data' have only the recorded actions"
    ):
        replace(options, learn="expert").validate()
    replace(options, learn="expert", data_path=path).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((6, 3, 84, 84), np.uint8)}, "'obs' of shape .6, 3, 84, 84.; expected .6, 3, 64, 112."),
        ({"is_red": None}, "has no 'is_red'"),
        ({"action": np.full(6, 5)}, "allowed is 0 to 4"),
    ],
)
def test_unusable_published_files_are_counted(tmp_path, changes, message):
    folder = tmp_path / "folder"
    published_folder(folder, [6, 6], **changes)
    with pytest.raises(UserError, match=f"none of 2 files train_data_.*can be used: train_data_0.npz.*{message}"):
        DATA.ensure(DataOptions(data_path=folder, data_dir=tmp_path / "data"))
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


def test_given_data_is_read_or_refused(tmp_path):
    path = generate(QUICK, 10, tmp_path / "data.h5", workers=1)
    assert DATA.ensure(DataOptions(data_path=path)) == path
    (tmp_path / "train_data_0.npz").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for bad, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "has no train_data"),
        (tmp_path / "train_data_0.npz", "give the folder"),
    ):
        with pytest.raises(UserError, match=f"--data_path .*{message}"):
            DATA.ensure(DataOptions(data_path=bad))
    with pytest.raises(UserError, match="none of 10 episodes has 90 steps.*have 12 to 12.*--steps 90"):
        DATA.whole_windows([path], size=90, shortest=90)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="training makes its data"):
        DATA.whole_windows([path], size=12, shortest=12)


def test_data_of_another_scenario_is_refused(tmp_path):
    """Otherwise evaluations would play a different game."""
    clear = Scenario("clear", pillar_steps=7, pillar=False)
    path = generate(Recipe(clear, 5, "limited", 0.0), 10, tmp_path / "data.h5", workers=1)
    message = (
        r"data.h5': made with --variant clear --pillar_steps 7 --pillar false, but the flags are "
        r"--variant published --pillar_steps 45 --pillar true"
    )
    with pytest.raises(UserError, match=message):
        DATA.ensure(DataOptions(data_path=path))
    assert DATA.ensure(DataOptions(data_path=path, scenario=clear)) == path
    with h5py.File(path, "a") as file:  # files from other sources do not record it
        del file["checksums"]
        for name in asdict(clear):
            del file.attrs[name]
    assert DATA.ensure(DataOptions(data_path=path)) == path


@pytest.mark.parametrize(
    ("module", "name", "key"), [(dataset, "EXPERT_VERSION", "expert"), (dataset, "BUILDER_VERSION", "builder")]
)
def test_data_of_an_earlier_version_is_not_reused(tmp_path, monkeypatch, module, name, key):
    options = DataOptions(episodes=10, steps=5, data_dir=tmp_path)
    path = DATA.ensure(options)
    assert DATA.ensure(options) == path
    old = getattr(module, name)
    monkeypatch.setattr(module, name, old + 1)
    with pytest.raises(
        UserError, match=f"{path.name}' was made by version {old} of the {key}.* is version {old + 1}.*Give another"
    ):
        DATA.ensure(options)
    assert DATA.ensure(DataOptions(data_path=path)) == path, "it was named"


def test_file_names_contain_all_settings(tmp_path):
    names = {
        DATA.path(DataOptions(**changes)).name
        for changes in (
            *({}, {"steps": 150}, {"view": "full"}, {"noise": 0.1}, {"perturbation": 0.1}, {"episodes": 10}),
            *({"scenario": Scenario("clear")}, {"scenario": Scenario(items=9)}, {"scenario": Scenario(pillar=False)}),
            {"perturbation": 0.1, "perturbation_steps": 1},
        )
    }
    for value, shown in ((0.05, "0.05"), (0.1, "0.1"), (0.5, "0.5"), (1.0, "1"), (0.1000001, "0.1000001")):
        name = DATA.file_name(DataOptions(noise=value, perturbation=value))
        assert name == f"vizdoom_two_colors_limited_steps90_noise{shown}_perturbation{shown}_n5000.h5"
    assert len(names) == 10 and "vizdoom_two_colors_limited_steps90_n5000.h5" in names
    assert DATA.path(DataOptions()).parent.name == "VizDoom_data"


def test_existing_file_is_not_replaced(tmp_path, capsys):
    flags = ["--episodes", "10", "--steps", "5", "--workers", "1", "--data_dir", str(tmp_path), "--variant", "clear"]
    main(flags)
    line = capsys.readouterr().out
    path = tmp_path / "vizdoom_two_colors_limited_steps5_variant_clear_n10.h5"
    assert line.startswith(f"{path}: 10 episodes of 5 steps, mean return") and "dropped" not in line
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert "exists; add --overwrite true" in capsys.readouterr().err
    before = path.stat().st_mtime_ns
    main([*flags, "--overwrite"])
    assert path.stat().st_mtime_ns > before


def test_folder_is_converted_again_on_request(tmp_path, capsys):
    published_folder(tmp_path / "folder", [6, 6])
    flags = ["--data_path", str(tmp_path / "folder"), "--output", str(tmp_path / "data.h5")]
    (tmp_path / "data.h5").write_bytes(b"another file")
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert "data.h5' exists and is not a conversion" in capsys.readouterr().err
    main([*flags, "--overwrite"])
    converted = (tmp_path / "data.h5").stat().st_mtime_ns
    main(flags)
    assert (tmp_path / "data.h5").stat().st_mtime_ns == converted, "nothing has changed"
    main([*flags, "--overwrite"])
    assert (tmp_path / "data.h5").stat().st_mtime_ns > converted


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--episodes", "9"], "--episodes 9: must be at least 10"),
        (["--steps", "4201"], "--steps 4201: must be at most 4200"),
        (["--noise", "1.5"], "--noise 1.5: must be at most 1"),
        (["--perturbation", "-0.1"], "--perturbation -0.1: must be at least 0"),
        (["--perturbation", "0.5", "--perturbation_steps", "0"], "--perturbation_steps 0: must be at least 1"),
        (["--perturbation_steps", "1"], "--perturbation_steps 1: without --perturbation there is nothing to redraw"),
        (["--view", "wide"], "--view wide: the value must be one of limited, full"),
        (["--variant", "blue"], "--variant blue: the value must be one of published, clear"),
        (["--items", "0"], "--items 0: must be at least 1"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--output", "x.npz"], "--output 'x.npz': the name must end in .h5"),
        (["--data_path", "nowhere"], "--data_path 'nowhere': must be a folder"),
    ],
)
def test_bad_flags_are_named(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--data_dir", "data"])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") <= 2
    assert not list(tmp_path.iterdir())
