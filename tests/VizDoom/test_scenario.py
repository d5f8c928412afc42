"""The scenario: its files, the cache, and the game's rules, against what is known of the original."""

import struct
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vizdoom")

from RATE_model.errors import UserError
from VizDoom.VizDoom_src import scenario as scenarios
from VizDoom.VizDoom_src.env import LEFT, RIGHT
from VizDoom.VizDoom_src.expert import Expert
from VizDoom.VizDoom_src.scenario import Scenario, build, ensure_scenario
from VizDoom.VizDoom_src.seeds import FIRST_DATA_SEED, GREEN_SEEDS, RED_SEEDS
from VizDoom.VizDoom_src.wad import Acs, sprite, udmf, wad


def lumps_of(content):
    """Name and content of every lump of a WAD."""
    magic, count, directory = struct.unpack_from("<4sii", content)
    assert magic == b"PWAD" and len(content) == directory + 16 * count
    entries = [struct.unpack_from("<ii8s", content, directory + 16 * number) for number in range(count)]
    return [(name.rstrip(b"\0").decode(), content[start : start + size]) for start, size, name in entries]


def test_archives_and_maps_are_written_as_described():
    lumps = [("MAP01", b""), ("TEXTMAP", b"abc"), ("ENDMAP", b"")]
    assert lumps_of(wad(lumps)) == lumps
    with pytest.raises(ValueError, match="8 characters"):
        wad([("BEHAVIOURS", b"")])
    text = udmf([("thing", {"x": -1.5, "type": 1, "single": True}), ("sidedef", {"texturemiddle": "STONE2"})])
    assert text.decode().splitlines() == [
        'namespace = "zdoom";',
        "thing { x=-1.500; type=1; single=true; }",
        'sidedef { texturemiddle="STONE2"; }',
    ]


def test_scripts_are_assembled():
    acs = Acs().script(1, 1).label("again").push_text("Item").push_fixed(1.5).jump("goto", "again")
    code = acs.script(2).push_text("Item").do("terminate").assemble()
    words = struct.unpack(f"<{len(code) // 4}i", code)
    assert code[:4] == b"ACS\0" and words[1] == 52
    assert words[2:11] == (3, 0, 3, 3 << 15, 52, 8, 3, 0, 1)  # push 0, push 1.5, goto the first word; push 0, end
    assert code[44:52] == b"Item\0\0\0\0"
    assert words[13:] == (2, 1001, 8, 0, 2, 32, 0, 1, 44)


def test_sprites_stand_on_their_lower_edge():
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    png = sprite(pixels)
    assert png.startswith(b"\x89PNG") and struct.unpack(">ii", png[png.index(b"grAb") + 4 :][:8]) == (1, 2)
    assert png.index(b"grAb") < png.index(b"IDAT")
    np.testing.assert_array_equal(np.array(Image.open(BytesIO(png))), pixels)


def test_cache_has_one_file_per_scenario(cache, monkeypatch):
    path = ensure_scenario(Scenario())
    assert path.parent == cache / "rate-memory" / "vizdoom" and path.read_bytes() == build(Scenario())
    others = [
        Scenario("clear"),
        Scenario(items=9),
        Scenario(spawn_tics=31),
        Scenario(pillar=False),
        Scenario(pillar_steps=9),
    ]
    paths = {ensure_scenario(other) for other in others}
    assert len(paths | {path}) == 6 and len({other.read_bytes() for other in paths | {path}}) == 6
    stamp = path.stat().st_mtime_ns
    assert ensure_scenario(Scenario()) == path and path.stat().st_mtime_ns == stamp
    monkeypatch.setattr(scenarios, "BUILDER_VERSION", 0)
    assert ensure_scenario(Scenario()) != path
    assert not list(path.parent.glob(".*.tmp"))


def test_unwritable_cache_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        ensure_scenario(Scenario())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "blue"}, "--variant blue: must be published or clear"),
        ({"pillar_steps": 0}, "--pillar_steps 0: must be at least 1"),
        ({"items": 101}, "--items 101: must be at most 100"),
        ({"spawn_tics": -3}, "--spawn_tics -3"),
    ],
)
def test_bad_values_are_named(changes, message):
    for use in (build, ensure_scenario):
        with pytest.raises(UserError, match=message):
            use(Scenario(**changes))


def random_policy(env, seed):
    """The published protocol of random play; return and length in tics."""
    actions = np.random.RandomState(seed)
    env.reset(seed=seed)
    total, steps, done = 0.0, 0, False
    while not done:
        _, reward, done, truncated, _ = env.step(actions.randint(5))
        assert not truncated
        total, steps = total + reward, steps + 1
    return total, 2 * steps


def test_random_play_scores_as_published_on_some_seeds(game):
    """Figures of ten seeds of each list; the next test compares those of all seeds with the published ones."""
    env = game()
    for seeds, mean, tics in ((RED_SEEDS, 5.256, 425.6), (GREEN_SEEDS, 4.832, 403.2)):
        scores = np.array([random_policy(env, seed) for seed in seeds[:10]])
        np.testing.assert_allclose(scores.mean(axis=0), [mean, tics], atol=1e-9)


@pytest.mark.slow
def test_random_play_scores_as_published_on_all_seeds(game):
    env = game()
    red = np.array([random_policy(env, seed) for seed in RED_SEEDS])
    green = np.array([random_policy(env, seed) for seed in GREEN_SEEDS])
    np.testing.assert_allclose((red[:, 0].mean(), green[:, 0].mean()), (4.6576, 4.9772), atol=1e-9)
    assert np.concatenate([red, green])[:, 1].mean() == 404.75


def test_the_published_seeds_have_their_colours(game):
    env = game()
    lists = {True: list(RED_SEEDS), False: list(GREEN_SEEDS)}
    for seed in range(226):
        colour = env.reset(seed=seed)[1]["is_red"]
        assert (seed in lists[colour]) or (colour and seed > RED_SEEDS[-1])
    assert len(RED_SEEDS) == len(GREEN_SEEDS) == 100 and max(RED_SEEDS + GREEN_SEEDS) < FIRST_DATA_SEED
    assert RED_SEEDS[::4][-1] == 165 and GREEN_SEEDS[::4][-1] == 221


@pytest.mark.parametrize("variant", ["published", "clear"])
def test_pillar_items_and_floor(game, variant):
    """Standing still: the pillar is visible in observations 0 to 44, then items appear, and the floor kills at 384."""
    env = game(Scenario(variant), privileged=True)
    env.reset(seed=2)
    pillar, items, health, steps, terminated = [], [], [], 0, False
    while not terminated:
        around = env.surroundings()
        pillar.append(around.pillar)
        items.append(len(around.right) + len(around.wrong))
        health.append(around.health)
        *_, terminated, _, info = env.step(LEFT if steps % 2 else RIGHT)
        steps += 1
    assert pillar == [True] * 45 + [False] * (len(pillar) - 45)
    assert items[:45] == [20] * 45 and items[45] == 21
    assert health[0] == 92 and health[:17] == [92] * 16 + [84] and 192 <= steps <= 193
    assert sorted(set(health)) == list(range(4, 100, 8)) and info["health"] <= 0
    if variant == "published":  # one every 30 tics, 15 steps
        assert [items[45 + 15 * number] for number in range(9)] == list(range(21, 30))


@pytest.mark.parametrize("variant", ["published", "clear"])
def test_scenario_parameters_take_effect(game, variant):
    env = game(Scenario(variant, pillar_steps=3, items=100, spawn_tics=4), privileged=True)
    env.reset(seed=2)
    pillar, items = [], []
    for step in range(12):
        around = env.surroundings()
        pillar.append(around.pillar)
        items.append((len(around.right), len(around.wrong)))
        env.step(step % 2)
    assert pillar == [True] * 3 + [False] * 9
    assert items[:3] == [(100, 100)] * 3 and [sum(pair) for pair in items[3::2]] == [201, 202, 203, 204, 205]
    bare = game(Scenario(variant, pillar=False), privileged=True)
    bare.reset(seed=2)
    assert not bare.surroundings().pillar and len(bare.surroundings().right) == 10


def health_by_step(env, seed, options, *, to_right_items):
    """A player that collects items of one colour: health before and after each step, and the reward."""
    expert, over = Expert("full"), False
    _, info = env.reset(seed=seed, options=options)
    while not over:
        around = env.surroundings()
        if not to_right_items:
            around = replace(around, right=around.wrong, wrong=around.right, health=50.0)
        before = info["health"]
        _, reward, terminated, truncated, info = env.step(expert.act(around))
        yield before, info["health"], reward
        over = terminated or truncated


@pytest.mark.parametrize(
    ("variant", "red", "hurt"), [("published", True, 17), ("published", False, 13), ("clear", True, 25)]
)
def test_right_items_heal_and_wrong_ones_hurt(game, variant, red, hurt):
    """In the published variant a wrong item costs the damage that passes the armour: 17 (green) or 13 (red)."""
    env = game(Scenario(variant), privileged=True, max_steps=150)
    options = {"is_red": red} if variant == "clear" else None
    seed = 2 if red else 0
    healed = [step for step in health_by_step(env, seed, options, to_right_items=True) if step[1] > step[0]]
    assert len(healed) >= 3
    for before, after, reward in healed:
        assert after in (min(before + 25, 100), min(before + 17, 100)) and reward == pytest.approx(1.02)
    steps = list(health_by_step(env, seed, options, to_right_items=False))
    losses = {before - after for before, after, _ in steps[:-1] if before > after}
    assert hurt in losses and losses <= {8, hurt, hurt + 4, hurt + 8}
    assert all(reward == pytest.approx(0.02) for _, _, reward in steps[:-1])
    assert steps[-1][1] <= 0 and len(steps) < 150
