"""Shared by the tests of ViZDoom: a cache apart from the user's, available graphics, games that are closed."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder of scenarios and launchers, for this session and for the processes that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def graphics_that_are_there():
    """Only these tests play with the installed graphics by default, because the published ones may be missing."""
    from RATE_model.cli import training
    from VizDoom.VizDoom_src import scenario

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenario.GRAPHICS, "published", "installed")
        training._usual.cache_clear()  # cached default configurations, which contain the graphics
        yield
    training._usual.cache_clear()


@pytest.fixture
def published_graphics(monkeypatch):
    """Use a variant's real graphics; skips if the published ones are missing."""
    from VizDoom.VizDoom_src import graphics, scenario

    if not (os.environ.get(graphics.WAD.variable) or graphics.WAD.place.exists()):
        pytest.skip(f"the published graphics are not here; {graphics.COMMAND} obtains them")
    monkeypatch.setitem(scenario.GRAPHICS, "published", "published")
    return graphics.WAD.ensure()


@pytest.fixture
def game():
    """Makes games, with the arguments of `VizDoomTwoColorsEnv`, and closes them after the test."""
    from VizDoom.VizDoom_src.env import VizDoomTwoColorsEnv

    made = []

    def make(*arguments, **options):
        made.append(VizDoomTwoColorsEnv(*arguments, **options))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def games():
    """Makes many games side by side, with the arguments of `VizDoomTwoColorsVectorEnv`; closed after the test."""
    from VizDoom.VizDoom_src.env import VizDoomTwoColorsVectorEnv

    made = []

    def make(*arguments, **options):
        made.append(VizDoomTwoColorsVectorEnv(*arguments, **options))
        return made[-1]

    yield make
    for envs in made:
        envs.close()


@pytest.fixture
def engines():
    """A function that lists the processes of running engines that this process or its children started."""
    psutil = pytest.importorskip("psutil")

    def running():
        started = psutil.Process().children(recursive=True)
        return [
            process for process in started if process.name() == "vizdoom" and process.status() != psutil.STATUS_ZOMBIE
        ]

    return running
