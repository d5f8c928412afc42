"""The checksum benchmark with tiny sizes."""

import json

from benchmarks import checksums


def test_it_runs(tmp_path, capsys):
    flags = "--episodes 2 --steps 31 --batch_size 2 --rounds 1 --threads 0".split()
    checksums.main([*flags, "--output", str(tmp_path / "figures.json")])
    kinds = json.loads((tmp_path / "figures.json").read_text())["kinds"]
    assert list(kinds) == list(checksums.KINDS)
    for found in kinds.values():
        assert len(found["cases"]) == 9 and set(found["bytes"]) == set(checksums.WAYS)
    assert "| Fletcher-32 |" in capsys.readouterr().out
