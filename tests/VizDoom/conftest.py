"""What the tests of ViZDoom share: a cache that is not the user's, and games that are closed."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The folder of scenarios and launchers, for this session and for the processes that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def game():
    """Makes games, with the arguments of `VizDoomTwoColorsEnv`, and closes them behind the test."""
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
    """Makes many games side by side, with the arguments of `VizDoomTwoColorsVectorEnv`; closed behind the test."""
    from VizDoom.VizDoom_src.vector import VizDoomTwoColorsVectorEnv

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
