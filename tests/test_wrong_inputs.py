"""Wrong input to every script: one line that names it, exit status 2, no traceback, and nothing created."""

import importlib
import os
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPTS = {
    "tmaze": "TMaze_new.TMaze_new_src.train_tmaze",
    "tmaze data": "TMaze_new.TMaze_new_src.dataset",
    "tmaze inference": "TMaze_new.TMaze_new_src.inference_tmaze",
    "tmaze reproduce": "TMaze_new.TMaze_new_src.reproduce",
    "quickstart": "TMaze_new.TMaze_new_src.quickstart",
    "vizdoom": "VizDoom.VizDoom_src.train_vizdoom",
    "vizdoom data": "VizDoom.VizDoom_src.dataset",
    "vizdoom inference": "VizDoom.VizDoom_src.inference_vizdoom",
    "vizdoom reproduce": "VizDoom.VizDoom_src.reproduce",
    "minigrid": "MinigridMemory.MinigridMemory_src.train_minigridmemory",
    "minigrid data": "MinigridMemory.get_data.collect_traj",
    "minigrid inference": "MinigridMemory.MinigridMemory_src.inference_minigridmemory",
    "minigrid reproduce": "MinigridMemory.MinigridMemory_src.reproduce",
    "maze": "MemoryMaze.MemoryMaze_src.train_mem_maze",
    "maze data": "MemoryMaze.MemoryMaze_src.dataset",
    "maze inference": "MemoryMaze.MemoryMaze_src.inference_mem_maze",
    "maze reproduce": "MemoryMaze.MemoryMaze_src.reproduce",
    "atari": "Atari.train_rate_atari",
    "atari data": "Atari.generate_dataset",
    "atari inference": "Atari.inference_atari",
    "atari reproduce": "Atari.reproduce",
    "mujoco": "MuJoCo.train_rate_mujoco_ca",
    "mujoco data": "MuJoCo.generate_dataset",
    "mujoco inference": "MuJoCo.inference_mujoco",
    "mujoco reproduce": "MuJoCo.reproduce",
    "download": "download_d4rl_datasets",
    "original": "RATE_model.original.__main__",
    "parity": "tools.check_parity",
    "protocol": "RATE_model.protocol.__main__",
    "report": "RATE_model.report.__main__",
    "diagnose": "RATE_model.diagnose.__main__",
    "plots": "RATE_model.plots.__main__",
    "sweep": "RATE_model.sweep.__main__",
    "train_step benchmark": "benchmarks.train_step",
    "rollout benchmark": "benchmarks.rollout",
}
LONG = "x" * 300
# Files and folders are made by `here`.
INPUTS = [
    # memories: unknown ones, flags of others, and flags fixed by a mode
    ("tmaze", "--model_mode NTM", "RATE_wo_nmt, LSTM, GRU, MLP"),
    ("vizdoom", "--model_mode LSTM --nmt 5", "--nmt is a flag of RATE"),
    ("maze", "--model_mode DT --nmt 5", "--nmt 5 with --model_mode DT"),
    ("atari", "--model_mode DLSTM --step_input joined", "--step_input joined"),
    ("mujoco", "--model_mode MLP --hidden_size 3", "--hidden_size is a flag of LSTM and GRU"),
    ("tmaze", "--model_mode LRU --mamba_state 8", "--mamba_state is a flag of Mamba"),
    ("tmaze", "--model_mode kNN --dropout 0.1", "--dropout 0.1: --model_mode kNN has no dropout"),
    ("minigrid", "--model_mode LRU --lru_r_max 1", "--lru_r_min 0.9 --lru_r_max 1"),
    ("vizdoom", "--model_mode mLSTM --mlstm_heads 3", "--mlstm_heads 3: must divide 2 * --d_model = 256"),
    ("atari", "--model_mode AMRL --amrl_hidden 5", "--amrl_hidden 5: must be even"),
    ("mujoco", "--model_mode SHM --shm_size 0", "--shm_size 0: must be at least 1"),
    ("maze", "--model_mode DMamba --mamba_input joined", "--mamba_input joined: --model_mode DMamba"),
    ("tmaze", "--model_mode FFM --ffm_horizon 1", "--ffm_horizon 1: must be at least 2"),
    ("tmaze", "--model_mode LSTM --budget 3M", "--budget"),
    ("tmaze", "--model_mode LSTM --budget 2M --d_model 64", "--d_model 64: --budget 2M chooses the width"),
    ("tmaze", "--model_mode RATE --budget 0.1M --d_head 512", "--budget 0.1M: RATE cannot have 100,000 parameters"),
    ("minigrid", "--condition future", "auto, rtg, none"),
    # acting flags that do not apply to the agent
    ("tmaze", "--model_mode LSTM --slide 3", "--slide: --model_mode LSTM does not act on a sliding window"),
    ("mujoco", "--model_mode MLP --slide 1", "--slide"),
    (
        "vizdoom",
        "--condition none --target_return 5",
        "--target_return: --model_mode RATE is not conditioned",
    ),
    ("maze", "--model_mode BC-GRU --desired_return 5", "--target_return: --model_mode BC-GRU"),
    ("vizdoom", "--model_mode BC-MLP --reset_target true", "--reset_target"),
    ("mujoco", "--condition_on_returns false --target_return 3000", "--target_return"),
    # flags without effect beside others
    ("tmaze", "--model_mode LSTM --compile true", "--compile true: --model_mode LSTM does not use it"),
    ("tmaze", "--init_from a --initialisation scaled", "--initialisation scaled: --init_from a gives all weights"),
    ("tmaze", "--aux return --aux_weight 1e-50", "--aux_weight 1e-50: must be a float32, from 1.2e-38"),
    ("tmaze", "--model_mode LSTM --attention blocks", "--attention blocks: --model_mode LSTM does not use it"),
    ("vizdoom", "--model_mode ELMUR --attention shared", "--attention shared: --model_mode ELMUR"),
    ("tmaze", "--lr_schedule constant --lr_end_factor 0.5", "--lr_end_factor 0.5: --lr_schedule constant"),
    ("mujoco", "--final_tokens 100", "--final_tokens 100: --lr_schedule constant does not use it"),
    ("tmaze", "--lr_schedule late_linear --final_tokens 9", "--final_tokens 9: --lr_schedule late_linear"),
    ("vizdoom", "--warmup_steps 50", "--warmup_steps 50: --warmup_tokens 10000 takes its place"),
    ("tmaze", "--warmup_steps 50 --warmup_tokens 9", "--warmup_steps 50: --warmup_tokens 9 takes its place"),
    ("minigrid", "--n_head_ca 0 --mrv_act tanh", "--mrv_act tanh with --n_head_ca 0"),
    ("maze", "--model_mode DT --mrv_act relu", "--mrv_act relu with --model_mode DT"),
    # values out of range, of another type, or not finite
    ("tmaze", "--learning_rate nan", "--learning_rate nan"),
    ("tmaze", "--learning_rate -1e-3", "--learning_rate -0.001"),
    ("tmaze", "--num_workers 100000", "--num_workers 100000"),
    *(
        (script, "--target_return 1e300", "--target_return 1e+300: must be at most 3.4028234663852886e+38")
        for script in ("tmaze", "vizdoom", "minigrid", "maze", "atari", "mujoco")
    ),
    ("maze", "--desired_return -1e300", "--target_return -1e+300: must be at least -3.4"),
    ("vizdoom inference", "--checkpoint nowhere --target_return 3 1e300", "--target_return 1e+300: must be at most"),
    ("atari", "--return_scale 1e-300", "--return_scale 1e-300: must be at least 1e-06"),
    ("atari", "--return_scale 1e300", "--return_scale 1e+300: must be at most 1000000000.0"),
    ("vizdoom", "--batch_size 0", "--batch_size 0"),
    ("vizdoom", "--epochs 1.5", "--epochs 1.5"),
    ("vizdoom data", "--workers 99999", "--workers 99999"),
    ("minigrid", "--dropout 2", "dropout"),
    ("minigrid", "--beta_2 1", "--beta_2 1"),
    ("maze", "--start_seed 5 --end_seed 4", "--end_seed 4"),
    ("maze", "--seed -1", "--seed -1"),
    ("atari", "--n_head 0", "n_head"),
    ("atari", "--conv_channels 8 8", "--conv_channels 8 8"),
    ("mujoco", "--d_model 99999999", "d_model"),
    ("mujoco", "--precision 16", "--precision 16"),
    ("tmaze reproduce", "--jobs 1000000", "--jobs 1000000"),
    ("minigrid reproduce", "--seeds 1 3", "--seeds 1 3"),
    ("maze inference", "--checkpoint folder --episodes 0", "--episodes 0"),
    ("maze reproduce", "--episodes 1.5", "--episodes 1.5"),
    ("maze reproduce", "--models NTM", "--models NTM"),
    ("vizdoom reproduce", "--models NTM", "--models NTM"),
    ("mujoco reproduce", "--seeds", "--seeds"),
    ("vizdoom data", "--episodes -3", "--episodes -3"),
    # flags that do not exist, lack a value, or have too many
    ("tmaze", "--lerning_rate 1", "--lerning_rate"),
    ("vizdoom inference", "--checkpoint", "--checkpoint needs a value"),
    ("atari data", "--game", "--game needs a value"),
    ("mujoco inference", "checkpoint", "unexpected argument"),
    ("download", "--task hopper", "--task"),
    ("quickstart", "--output_dir a b", "takes one value"),
    ("original", "--variant tmaze", "required"),
    ("original", "weights.pt --variant chess --output out --context_length 3", "chess"),
    ("original", "weights.pt --variant tmaze --output out --context_length three", "three"),
    ("original", "weights.pt --variant tmaze --output out --context_length 3 --unknown 1", "--unknown"),
    ("parity", "", "FILE"),
    ("protocol", "", "--checkpoint is missing"),
    ("protocol", "--checkpoint folder folder", "--checkpoint folder: was given twice"),
    ("protocol", "--grid --env tmaze --model_mode NTM", "--model_mode NTM"),
    ("report", "folder ./folder", "folder: was given twice"),
    ("diagnose", "folder --episodes 0", "--episodes 0"),
    ("plots", "folder --output curves.jpg", "curves.jpg"),
    ("sweep", "'python3 x --seed 1'", "--seed: set by the sweep"),
    ("sweep", "'python3 x --a {1,2'", "{1,2: write values in braces"),
    ("parity", "--tolerance 1 a.npz", "--tolerance"),
    ("train_step benchmark", "--steps zero", "--steps"),
    ("rollout benchmark", "--no_such_flag 1", "--no_such_flag"),
    # incompatible flags, reported before any data is made
    ("tmaze", "--calibrate true", "--calibrate true"),
    ("mujoco", "--calibrate true", "--calibrate true"),
    ("tmaze", "--resume auto --overwrite true", "are mutually exclusive"),
    ("vizdoom", "--steps 17", "--steps 17"),
    ("minigrid", "--device cuda:99", "--device cuda:99"),
    ("maze", "--device tpu", "--device tpu"),
    ("tmaze", "--burn_in 9", "whole episodes"),
    ("minigrid", "--window_state stored", "whole episodes"),
    ("vizdoom", "--burn_in 90", "whole episodes"),
    ("maze", "--segments 3 --context_length 30 --burn_in 90", "at most 89"),
    ("atari", "--segments 3 --context_length 30 --burn_in 100", "at most 89"),
    ("mujoco", "--segments 3 --context_length 20 --burn_in 60", "at most 59"),
    ("mujoco", "--burn_in -1", "--burn_in -1"),
    ("mujoco", "--window_state stored --pad left", "--pad right"),
    ("atari", "--window_state stored --model_mode MLP", "passes no state on"),
    ("maze", "--window_state stored --model_mode DT", "passes no state on"),
    ("maze", "--window_state past", "--window_state"),
    # files and folders
    ("tmaze", "--config nowhere.yaml", "nowhere.yaml"),
    ("tmaze", "--config folder", "folder"),
    ("vizdoom", "--config laughs.yaml", "laughs.yaml"),
    ("minigrid", "--config itself.yaml", "itself.yaml"),
    ("maze", "--config twice.yaml", "twice.yaml"),
    ("atari", "--config large.yaml", "large.yaml"),
    ("mujoco", "--config binary.yaml", "binary.yaml"),
    ("mujoco", "--config lines.yaml", "lines.yaml"),
    ("atari", "--config unknown.yaml", "unknown.yaml"),
    ("tmaze", "--resume nowhere", "nowhere"),
    ("tmaze", "--resume folder", "folder"),
    ("minigrid", "--resume ''", "--resume '': give no, auto"),
    ("tmaze inference", "--checkpoint nowhere", "nowhere"),
    ("tmaze inference", "--checkpoint folder --output folder", "--output folder"),
    ("vizdoom inference", "--checkpoint folder --output missing/out.json", "--output missing/out.json"),
    ("minigrid inference", f"--checkpoint folder --output {LONG}", "--output"),
    ("atari inference", f"--checkpoint {LONG}", LONG),
    ("mujoco inference", "--checkpoint file", "file"),
    ("tmaze data", f"--data_dir {LONG}", "255 bytes"),
    ("tmaze", f"--output_dir {LONG}", LONG),
    ("tmaze", f"--data_dir folder/{LONG}/data", "255 bytes"),
    ("vizdoom", f"--data_path {LONG}", LONG),
    ("minigrid data", f"--output {LONG}", LONG),
    ("maze data", "--output file/data.h5", "file"),
    ("maze", "--data_path nowhere.h5", "nowhere.h5"),
    ("vizdoom", "--data_path nowhere.h5", "--data_path 'nowhere.h5': does not exist"),
    ("vizdoom", "--add_data nowhere.h5", "--add_data 'nowhere.h5': does not exist"),
    ("vizdoom", "--driver nowhere", "nowhere does not exist"),
    ("maze data", "--driver nowhere --perturbation 0.1", "nowhere does not exist"),
    ("maze data", "--alignment causal", "--alignment causal: only applies"),
    ("tmaze", "--data_dir file", "file' is not a directory"),
    ("minigrid", "--data_dir file", "file' is not a directory"),
    ("vizdoom", "--data_dir file/below", "file' is not a directory"),
    ("maze", "--data_dir file", "file' is not a directory"),
    ("tmaze data", "--data_dir file", "file' is not a directory"),
    ("atari data", "--data_dir file", "file is a file"),
    ("mujoco data", "--data_path file", "file' is not a directory"),
    ("atari data", f"--output {LONG}", LONG),
    ("mujoco data", f"--data_path {LONG}", LONG),
    ("vizdoom data", "--output pipe --overwrite true", "pipe"),
    ("atari data", "--output pipe --overwrite true", "pipe"),
    ("minigrid data", "--output pipe --overwrite true", "pipe"),
    ("maze data", "--output pipe --overwrite true", "pipe"),
    ("vizdoom data", "--output folder.h5", "folder.h5': it is a directory"),
    ("atari data", "--output folder.h5", "folder.h5': it is a directory"),
    ("minigrid data", "--output folder.h5", "folder.h5': it is a directory"),
    ("maze data", "--output folder.h5", "folder.h5': it is a directory"),
    ("tmaze inference", "--checkpoint folder --pictures /dev/null", "/dev/null"),
    ("vizdoom reproduce", f"--results_dir {LONG}", LONG),
    ("atari reproduce", "--results_dir file", "file"),
    ("quickstart", f"--output_dir {LONG}", LONG),
    ("download", f"--data_path {LONG}", LONG),
    ("original", f"{LONG} --variant tmaze --output out --context_length 3", LONG),
    ("original", "file --variant tmaze --output out --context_length 3", "file"),
    ("parity", LONG, LONG),
    ("parity", "file", "file"),
    ("rollout benchmark", "--output missing/out.json", "missing"),
    # names that are not UTF-8, and control characters that would forge a second line
    ("tmaze inference", b"--checkpoint \xff\xfe", "\\udcff"),
    ("tmaze", b"--resume \xff\xfe", "\\udcff"),
    ("vizdoom", b"--data_path \xff.h5", "\\udcff"),
    ("tmaze", b"--text \xff", "\\udcff"),
    ("tmaze", "--text 'a\nerror: all is well' --model_mode 'RATE\nx'", "RATE\\nx"),
    ("minigrid inference", "--checkpoint 'a\rb'", "a\\rb"),
    ("maze", "--config 'no\x1b[31m.yaml'", "no\\x1b[31m.yaml"),
    ("atari data", "--game 'Po\u2028ng'", "Po\\u2028ng"),
    ("mujoco", "--ckpt_folder ../elsewhere", "--ckpt_folder ../elsewhere"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with the files that the inputs name."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("folder", "folder.h5"):
        (folder / name).mkdir()
    (folder / "file").write_text("text\n")
    os.mkfifo(folder / "pipe")
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "laughs.yaml").write_text("\n".join(laughs))
    (folder / "itself.yaml").write_text("text: &t [*t]\n")
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (folder / "large.yaml").write_text("# comment\n" * 200_000)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "lines.yaml").write_text('model_mode: "RATE\\nerror: x"\n')
    (folder / "unknown.yaml").write_text("seeed: 1\n")
    return folder


def everything(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("script", "words", "named"), INPUTS, ids=[f"{s} {w!r:.60}" for s, w, _ in INPUTS])
def test_wrong_input_is_refused_in_one_line(here, monkeypatch, capsys, script, words, named):
    module = importlib.import_module(SCRIPTS[script])
    arguments = shlex.split(words if isinstance(words, str) else os.fsdecode(words))
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    kept = [
        ROOT / name for name in ("results", "TMaze_new", "VizDoom", "MinigridMemory", "MemoryMaze", "Atari", "MuJoCo")
    ]
    before = everything(here, *kept)
    with pytest.raises(SystemExit) as stop:
        module.main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert said.err.rstrip("\n").isprintable() and named in said.err and len(said.err) < 1500
    assert everything(here, *kept) == before


@pytest.mark.parametrize("mode", ["DT", "LSTM", "BC-MLP"])
@pytest.mark.parametrize("script", ["tmaze", "vizdoom", "minigrid", "maze", "atari", "mujoco"])
def test_a_mode_alone_is_enough(capsys, script, mode):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(SCRIPTS[script]).main(["--model_mode", mode, "--print_config"])
    assert stop.value.code == 0 and f"model_mode: {mode}\n" in capsys.readouterr().out


def test_every_script_is_tried():
    assert {script for script, *_ in INPUTS} == set(SCRIPTS) and len(INPUTS) >= 60
