"""Videos and captions."""

import resource

import imageio.v3 as imageio
import numpy as np
import pytest

from RATE_model.acting.video import BLOCK, LINE, with_caption, write_video
from RATE_model.errors import UserError


def frames(count: int, height: int, width: int) -> list[np.ndarray]:
    """Grey frames, increasingly bright, the left half darker."""
    made = [np.full((height, width, 3), 60 + 15 * number, np.uint8) for number in range(count)]
    for frame in made:
        frame[:, : width // 2] //= 2
    return made


@pytest.mark.parametrize(("height", "width"), [(64, 80), (50, 70), (1, 17)])
def test_frames_are_padded_to_the_codecs_block_size(height, width, tmp_path):
    path = tmp_path / "deeper" / "episode.mp4"
    made = frames(9, height, width)
    assert write_video(made, path, fps=5) == path and [*path.parent.iterdir()] == [path]
    video = imageio.imread(path, plugin="FFMPEG")
    assert video.shape == (9, -(-height // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK, 3)
    assert imageio.immeta(path, plugin="FFMPEG")["fps"] == 5
    if height > 8:
        shown = video[:, : height - 8, : width - 8].astype(int)  # the codec blurs edges
        assert np.abs(shown - np.stack(made)[:, : height - 8, : width - 8]).mean() < 4


def test_a_video_replaces_an_older_one(tmp_path):
    path = tmp_path / "episode.mp4"
    write_video(frames(3, 32, 32), path)
    write_video(frames(7, 32, 32), path)
    assert len(imageio.imread(path, plugin="FFMPEG")) == 7


def test_an_unwritable_video_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "file" / "episode.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(UserError, match=f"video {path} cannot be written: "):
            write_video(frames(2, 32, 32), path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.mp4"}
    with pytest.raises(ValueError):
        write_video([], tmp_path / "empty.mp4")


@pytest.mark.parametrize("count", [2, 200])  # the encoder dies when it is closed, and before
def test_full_disk_is_reported_and_leaves_no_video(tmp_path, capfd, count):
    path = tmp_path / "video.mp4"
    noise = np.random.default_rng(0).integers(256, size=(count, 128, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: the encoder stopped; free some space") as refusal:
            write_video(noise, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(refusal.value) and capfd.readouterr() == ("", "") and not any(tmp_path.iterdir())


def test_frames_are_streamed_and_an_error_leaves_nothing(tmp_path):
    path, made = tmp_path / "episode.mp4", frames(4, 32, 32)
    assert len(imageio.imread(write_video(iter(made), path), plugin="FFMPEG")) == 4
    before = path.read_bytes()

    def broken():
        yield from made[:2]
        raise RuntimeError("the environment fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        write_video(broken(), path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before


def test_a_caption_only_adds_rows_below_the_frame():
    frame = np.random.default_rng(0).integers(0, 256, (40, 200, 3), dtype=np.uint8)
    one, other = with_caption(frame, "step 1", "success"), with_caption(frame, "step 2", "success")
    for captioned in (one, other):
        assert captioned.shape == (40 + 2 * LINE, 200, 3) and captioned.dtype == np.uint8
        np.testing.assert_array_equal(captioned[:40], frame)
    changed = (one != other).any(axis=(1, 2))
    assert changed[40 : 40 + LINE].any() and not changed[40 + LINE :].any()
    assert (one[40 + LINE :] > 128).any() and not with_caption(frame, "")[40:].any()
