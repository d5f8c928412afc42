"""Episodes as MP4 files."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from RATE_model.errors import UserError, error_reason
from RATE_model.system.interrupts import stop_if_asked
from RATE_model.system.locks import temporary

if TYPE_CHECKING:
    from RATE_model.environments.contract import Evaluation

BLOCK = 16  # the codec requires multiples of this
LINE = 18  # height of a line of text, pixels
_FRAMES = 30  # maximum frames per second


def with_caption(frame: np.ndarray, *lines: str) -> np.ndarray:
    """A frame (H, W, 3) uint8 with lines of text, white on black, below it: (H + 18 lines, W, 3) uint8."""
    height, width, _ = frame.shape
    image = Image.new("RGB", (width, height + LINE * len(lines)))
    image.paste(Image.fromarray(frame))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LINE - 5)
    for number, line in enumerate(lines):
        draw.text((4, height + LINE * number), line, font=font, fill="white")
    return np.asarray(image)


def write_video(frames: Iterable[np.ndarray], path: Path, *, fps: int = 8, quality: int = 8) -> Path:
    """Write frames (H, W, 3) uint8, all of one size, as an H.264 MP4; returns its path. Frames are streamed.

    Quality ranges from 1 to 10; two less shrinks a file of natural images to about a quarter.

    Sizes that the codec does not accept are padded with black on the right and at the bottom. The file appears when it
    is complete.

    Raises:
        UserError: the file cannot be written.
        ValueError: there are no frames.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {path}")
    # Quiet, because a full disk is reported below, in one line.
    encoding = {"format": "FFMPEG", "fps": fps, "codec": "libx264", "quality": quality, "ffmpeg_log_level": "quiet"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `closing`, because the writer leaves its process running after an error.
        with (
            temporary(path, folder=True) as folder,  # a folder, because the writer insists on a name that ends in .mp4
            closing(imageio.get_writer(partial := folder / path.name, **encoding)) as writer,
        ):
            for frame in itertools.chain([first], frames):
                height, width, _ = frame.shape
                writer.append_data(np.pad(frame, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0))))
            writer.close()
            if not _is_whole(partial):
                raise OSError("the encoder stopped")
            partial.replace(path)
    except OSError as error:
        # The writer's own errors have no number and quote the encoder's arguments.
        reason = (
            error_reason(error) if error.errno else "the encoder stopped; free some space there, if the disk is full"
        )
        raise UserError(f"video {path} cannot be written: {reason}") from error
    return path


def _is_whole(path: Path) -> bool:
    """Whether an MP4 file (ISO/IEC 14496-12) is complete: it has its index, which comes last.

    The writer does not report an encoder that could not write the end of a file.
    """
    if not path.exists():
        return False
    size, place, kind = path.stat().st_size, 0, b""
    with open(path, "rb") as file:
        while place + 8 <= size:
            file.seek(place)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == 1:  # the 64-bit size follows
                length = int.from_bytes(file.read(8), "big")
            place += max(length, 8)
    return kind == b"moov" and place == size


def check_drawable(evaluation: "Evaluation") -> None:
    """Draw one picture, so that what is missing is reported before the evaluation. Raises UserError if nothing can be
    drawn on this machine."""
    environment = evaluation.environment
    seeds = environment.seeds(environment.episode_counts[0])[:1]
    options = {name: values[0] for name, values in environment.reset_options(seeds, evaluation.options).items()}
    with closing(environment.make(evaluation.cases[0], evaluation.options, render_mode="rgb_array")) as scene:
        observation, _ = scene.reset(seed=int(seeds[0]), options=options or None)
        environment.frame(scene, observation, [])


def record_videos(evaluation: "Evaluation", folder: Path, count: int) -> list[Path]:
    """Replay the first episodes of an evaluation one by one into MP4 files; returns their paths.

    With sampled actions they are other episodes with the same seeds.

    Args:
        evaluation: what to play.
        folder: for ``{axis}_{case}_seed_{seed}.mp4`` or ``return_{target}_seed_{seed}.mp4``.
        count: episodes per case and target return.

    Raises:
        UserError: this machine cannot render, or the files cannot be written.
    """
    environment, paths = evaluation.environment, []
    seeds = environment.seeds(count)
    options = environment.reset_options(seeds, evaluation.options)
    several = len(evaluation.targets) > 1
    for target in evaluation.targets:
        for case in dict.fromkeys(evaluation.cases):
            with closing(environment.make(case, evaluation.options, render_mode="rgb_array")) as scene:
                for row, seed in enumerate(seeds.tolist()):
                    parts = [f"return_{target:g}"] * (several or case is None)
                    parts += [f"{environment.axis}_{case}"] * (case is not None)
                    path = folder / f"{'_'.join(parts)}_seed_{seed}.mp4"
                    given = {name: values[row] for name, values in options.items()} or None
                    frames = _frames(evaluation, scene, target, seed, given)
                    rate = int(scene.metadata.get("render_fps", 8))
                    every = -(-rate // _FRAMES)
                    paths.append(write_video(_thinned(frames, every), path, fps=rate // every))
    return paths


def _thinned(frames: Iterable[np.ndarray], every: int) -> Iterator[np.ndarray]:
    """Every n-th frame, and the last one."""
    frame, number = None, -1
    for number, frame in enumerate(frames):
        if number % every == 0:
            yield frame
    if frame is not None and number % every:
        yield frame


def _frames(
    evaluation: "Evaluation", scene: gymnasium.Env, target: float, seed: int, options: dict[str, Any] | None
) -> Iterator[np.ndarray]:
    """The frames of one episode as it is played; the last one stays for a second to show the outcome."""
    environment = evaluation.environment
    acting = evaluation.acting(target).with_memory(evaluation.transform_memory)
    actor = acting.actor(evaluation.agent, 1)
    player = environment.player(evaluation, actor)
    observation, _ = scene.reset(seed=seed, options=options)
    reward, total, step, over = 0.0, 0.0, 0, False

    def frame() -> np.ndarray:
        segment = step // evaluation.agent.memory.segment + 1
        said = f"step {step}, segment {segment}, return {total:.3g}" + ", over" * over
        return environment.frame(scene, observation, [said])

    picture = frame()
    yield picture
    while not over:
        stop_if_asked()
        action = player.act(observation[None], np.array([reward]))[0]
        observation, reward, terminated, truncated, _ = scene.step(action)
        reward, over = float(reward), bool(terminated or truncated)
        total, step = total + reward, step + 1
        picture = frame()
        yield picture
    for _ in range(int(scene.metadata.get("render_fps", 8))):
        yield picture
