"""The published graphics: their pictures, the download of their file, and records of which were used."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("vizdoom")

import vizdoom

from RATE_model.errors import UserError
from tests import commands
from tests.vizdoom_runs import NO_EVALUATION, TINY, places
from VizDoom.VizDoom_src import graphics, train_vizdoom
from VizDoom.VizDoom_src.dataset import DATA, DataOptions
from VizDoom.VizDoom_src.engine import Engine
from VizDoom.VizDoom_src.generate import Recipe, generate
from VizDoom.VizDoom_src.scenario import GRAPHICS, Scenario, ensure_scenario

RECORDED = Path(__file__).parents[1] / "data" / "vizdoom_frames.npz"  # see tools/record_vizdoom_frames.py
CONTENT = b"what stands in for the file"


def digests(engine: Engine, seed: int, actions: np.ndarray):
    """A digest of each picture of an episode, as in the recordings."""
    screen = engine.begin(int(seed))
    for action in (*actions.tolist(), None):
        yield int.from_bytes(hashlib.sha256(screen.tobytes()).digest()[:8], "little")
        if action is not None:
            screen, _ = engine.act(action)


def test_published_pictures_are_those_of_the_earlier_engine(published_graphics):
    """All of 1000 frames, except the phase of the floor, which that engine animates in wall-clock time."""
    engine, same, phases = Engine(Scenario().settled()), [], 0
    with np.load(RECORDED) as recorded:
        episodes = [*zip(recorded["seeds"], recorded["actions"], recorded["pictures"], strict=True)]
    for seed, actions, pictures in episodes:
        found = list(digests(engine, seed, actions))
        same += [digest in allowed for digest, allowed in zip(found, pictures.tolist(), strict=True)]
        phases += len({sorted(allowed).index(digest) for digest, allowed in zip(found, pictures.tolist(), strict=True)})
    engine.close()
    assert len(same) == 1000 and all(same) and phases > 2 * len(episodes), "the floor moves here as well"
    installed = Engine(Scenario(graphics="installed"))
    seed, actions, pictures = episodes[0]
    assert not {*digests(installed, seed, actions)} & {*pictures.flat}
    installed.close()


def test_only_the_pictures_differ(published_graphics, tmp_path):
    """The same seeds, actions, rewards and health; each file records its graphics."""
    made = {}
    for name in ("published", "installed"):
        path = generate(Recipe(Scenario(graphics=name), 30, "limited", 0.1), 2, tmp_path / f"{name}.h5", workers=1)
        assert f"; {name} graphics, vizdoom {vizdoom.__version__}" in DATA.describe(path)
        with h5py.File(path) as file:
            assert (file.attrs["graphics"], file.attrs["vizdoom"]) == (name, vizdoom.__version__)
            made[name] = {key: file[key][:] for key in ("observations", "actions", "rewards", "infos/health")}
    for key, values in made["published"].items():
        assert (values == made["installed"][key]).all() == (key != "observations"), key


# --- which ---


def test_variants_have_their_own_graphics(monkeypatch):
    monkeypatch.setitem(GRAPHICS, "published", "published")
    chosen = {scenario: scenario.settled().graphics for scenario in (Scenario(), Scenario("clear"))}
    assert [*chosen.values()] == ["published", "installed"], "clear keeps those of its results"
    assert Scenario(graphics="installed").settled() == Scenario(graphics="installed")
    assert Scenario("clear", graphics="published").settled().graphics == "published"
    assert len({ensure_scenario(Scenario(graphics=name)) for name in ("published", "installed")}) == 1, "one map"
    with pytest.raises(UserError, match="--graphics new: must be published or installed"):
        Scenario(graphics="new").settled()


def test_data_is_named_by_its_graphics(monkeypatch):
    """Files older than this flag were made with installed graphics, and keep their names."""
    monkeypatch.setitem(GRAPHICS, "published", "published")
    names = {
        "_graphics_published_n5000": Scenario(),
        "_n5000": Scenario(graphics="installed"),
        "_variant_clear_n5000": Scenario("clear"),
        "_variant_clear_graphics_published_n5000": Scenario("clear", graphics="published"),
    }
    for name, scenario in names.items():
        assert DATA.path(DataOptions(scenario=scenario)).stem == f"vizdoom_two_colors_limited_steps90{name}"


def test_data_of_other_graphics_is_refused(tmp_path):
    scenario = Scenario(graphics="installed")
    path = generate(Recipe(scenario, 5, "limited", 0.0), 10, tmp_path / "data.h5", workers=1)
    other = DataOptions(data_path=path, scenario=Scenario(graphics="published"))
    for _ in range(2):
        with pytest.raises(UserError, match="made with --graphics installed, but the flags are --graphics publish"):
            DATA.ensure(other)
        assert DATA.ensure(DataOptions(data_path=path, scenario=scenario)) == path
        with h5py.File(path, "a") as file:  # like files made before this was recorded
            file.attrs.pop("graphics", None)
            file.pop("checksums", None)


# --- downloading ---


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The file is missing, and a substitute is downloaded."""
    place, digest = tmp_path / "data" / "freedoom.wad", hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(graphics, "WAD", replace(graphics.WAD, place=place, sha256=digest))
    monkeypatch.delenv(graphics.WAD.variable, raising=False)
    return place


def wheel(path: Path, content: bytes = CONTENT, member: str = "vizdoom/freedoom2.wad") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, content)
    return path


@pytest.fixture
def index(monkeypatch):
    """Replaces pip; a list of its commands. `index.answer` sets the result."""

    class Index(list):
        answer = staticmethod(lambda folder: wheel(folder / "vizdoom-1.2.4.whl"))

    asked = Index()

    def run(command, **options):
        asked.append(command)
        said = asked.answer(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(
            command, int(isinstance(said, str)), "", said if isinstance(said, str) else ""
        )

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_the_file_is_downloaded_once(elsewhere, index, capsys):
    graphics.main([])
    graphics.main([])
    assert elsewhere.read_bytes() == CONTENT and [path.name for path in elsewhere.parent.iterdir()] == [elsewhere.name]
    ((*_, release),) = index
    assert release == "vizdoom==1.2.4" and {"--no-deps", "--only-binary", "--platform"} <= {*index[0]}
    assert capsys.readouterr().out.splitlines() == [
        f"downloading the published graphics from vizdoom==1.2.4 (28 MB): {elsewhere}", str(elsewhere), str(elsewhere)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found\n",
            "downloaded: No matching distribution found. Play",
        ),
        (
            "/bin/python: No module named pip\n",
            "downloaded: /bin/python: No module named pip. Play with --graphics inst",
        ),
        ("", "downloaded: pip ended with status 1. Play with --graphics installed; or,"),
        (b"another", "not the freedoom2.wad of vizdoom==1.2.4: its SHA-256 differs"),
    ],
)
def test_missing_wad_is_reported_before_creating_anything(elsewhere, index, tmp_path, capsys, answer, reason):
    index.answer = lambda folder: wheel(folder / "w.whl", answer) if isinstance(answer, bytes) else answer
    for flags in ((), NO_EVALUATION):  # to evaluate, and to make data
        flags = [*TINY, *places(tmp_path), "--graphics", "published", *flags]
        message = commands.error_of(capsys, tmp_path, train_vizdoom.main, flags)
        assert reason in message and message.count("\n") == 1, message
    assert len(index) == 2


@pytest.mark.parametrize("kind", ["wheel", "wad"])
def test_provided_file_is_accepted(elsewhere, index, tmp_path, kind):
    source = tmp_path / "brought"
    wheel(source) if kind == "wheel" else source.write_bytes(CONTENT)
    graphics.main(["--source", str(source)])
    assert elsewhere.read_bytes() == CONTENT and not index
    assert graphics.ensure_graphics(Scenario(graphics="published")) == elsewhere
    assert graphics.ensure_graphics(Scenario(graphics="installed")) is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b"another"), "its SHA-256 differs"),
        (lambda path: wheel(path, b"another"), "its SHA-256 differs"),
        (lambda path: wheel(path, member="vizdoom/other.wad"), "no vizdoom/freedoom2.wad in it"),
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_wrong_file_is_refused(elsewhere, tmp_path, capsys, make, reason):
    source = tmp_path / "brought"
    make(source)
    with pytest.raises(SystemExit, match="2"):
        graphics.main(["--source", str(source)])
    error = capsys.readouterr().err
    assert error.startswith(f"error: --source {source}: ") and reason in error and error.count("\n") == 1
    assert not elsewhere.exists()


def test_the_variable_names_the_file(elsewhere, index, tmp_path, monkeypatch):
    for name, content in (("good", CONTENT), ("bad", b"another")):
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv(graphics.WAD.variable, str(tmp_path / "good"))
    assert graphics.WAD.ensure() == tmp_path / "good" and not elsewhere.exists() and not index
    for name, reason in (("bad", "is not the freedoom2.wad of vizdoom==1.2.4"), ("gone", "cannot be read: No such")):
        monkeypatch.setenv(graphics.WAD.variable, str(tmp_path / name))
        with pytest.raises(UserError, match=rf"\$VIZDOOM_PUBLISHED_WAD '.*{name}' {reason}"):
            graphics.WAD.ensure()


def test_damaged_file_is_reported(elsewhere):
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"'{elsewhere}' is not the freedoom2.wad .* Delete it to download it again"):
        graphics.WAD.ensure()
