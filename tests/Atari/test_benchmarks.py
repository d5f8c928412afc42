"""The benchmarks of training and loading, on tiny sizes."""

import json

import pytest

pytest.importorskip("ale_py")

from benchmarks import atari_loading, atari_training


def test_every_frame_is_encoded_once(tmp_path, capsys):
    atari_training.main("--batch_size 2 --part 1 --threads 1 --output".split() + [str(tmp_path / "figures.json")])
    cases = json.loads((tmp_path / "figures.json").read_text())["cases"]
    for window in ("one segment", "all segments"):
        case = cases[f"batch, gradients through {window}"]
        assert case["encodings_per_observation"] == 1 and case["share_of_frames"] > 0
    assert "a batch moves 1 MB of single frames" in capsys.readouterr().out


def test_loading_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(atari_loading, "EPISODE", 50)
    monkeypatch.setattr(atari_loading.common, "in_fresh_process", lambda function, *arguments: function(*arguments))
    flags = "--transitions 1500 --buffer 1000 --batch_size 2 --steps 20 --output".split()
    atari_loading.main([*flags, str(tmp_path / "figures.json")])
    cases = json.loads((tmp_path / "figures.json").read_text())["cases"]
    assert cases["in memory"]["transitions"] == 1500 and cases["from disk"]["open_s"] < 2
    assert "| returns-to-go and windows " in capsys.readouterr().out


@pytest.mark.parametrize(("module", "flags"), [(atari_training, "--part 0"), (atari_loading, "--steps 0")])
def test_bad_flags(module, flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        module.main(flags.split())
    assert f"{flags}: must be at least 1" in capsys.readouterr().err
