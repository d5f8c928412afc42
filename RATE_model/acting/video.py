"""Episodes as MP4 files."""

import itertools
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from RATE_model.errors import UserError
from RATE_model.system.locks import temporary

BLOCK = 16  # the codec takes sizes that are multiples of this
LINE = 18  # pixels of a line of text


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
    """Write frames (H, W, 3) uint8, all of one size, as an H.264 MP4; returns its path. One frame is needed at a time.

    Quality goes from 1 to 10; two less make a file of natural pictures about a fourth as large.

    Sizes that the codec does not take are padded with black at the right and at the bottom. The file appears when it
    is complete.

    Raises:
        UserError: the file cannot be written.
        ValueError: there is no frame.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frame to write to {path}")
    encoding = {"format": "FFMPEG", "fps": fps, "codec": "libx264", "quality": quality}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `closing`, as the writer itself leaves its process running when an error passes.
        with (
            temporary(path, folder=True) as folder,  # a folder, as the writer insists on a name that ends in .mp4
            closing(imageio.get_writer(partial := folder / path.name, **encoding)) as writer,
        ):
            for frame in itertools.chain([first], frames):
                height, width, _ = frame.shape
                writer.append_data(np.pad(frame, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0))))
            writer.close()
            partial.replace(path)
    except OSError as error:
        raise UserError(f"video {path} cannot be written: {error.strerror or error}") from error
    return path
