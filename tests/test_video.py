"""Videos frame by frame."""

import cv2
import numpy as np
import pytest

from restormixer_arch.data.images import VIDEO_CODECS
from restormixer_arch.data.images.video import VideoFrames, transform_video
from restormixer_arch.errors import UserError

SIZE = (48, 64)


def write_video(path, count=4, size=SIZE, rate=10.0):
    """Frames of one colour each, rising; red, green and blue differ."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*VIDEO_CODECS[path.suffix]), rate, size[::-1])
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((*size, 3), (200, 100, 20 + 40 * number), np.uint8))  # BGR
    writer.release()
    return path


def means(path):
    return np.array([frame.mean((0, 1)) for frame in VideoFrames(path)])


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_frames_in_rgb_and_rate_are_carried_over(tmp_path, suffix):
    path, target = write_video(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}"
    seen = []
    frames = VideoFrames(path)
    assert frames.count == 4 and frames.rate == 10
    count = transform_video(frames, {target: lambda before, after: after}, lambda frame: frame // 2, seen.append)
    assert count == 4 and seen == [1, 2, 3, 4]
    np.testing.assert_allclose(means(path)[:, 0], [20, 60, 100, 140], atol=6)
    np.testing.assert_allclose(means(target), means(path) / 2, atol=6)
    assert VideoFrames(target).rate == 10


def test_several_results_of_their_own_size(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    targets = {
        tmp_path / "large.mp4": lambda before, after: after,
        tmp_path / "pair.avi": lambda before, after: np.hstack([before, after[:48, :64]]),
    }
    transform_video(VideoFrames(path), targets, lambda frame: frame.repeat(2, 0).repeat(2, 1), lambda number: None)
    shapes = [next(iter(VideoFrames(target))).shape for target in targets]
    assert shapes == [(96, 128, 3), (48, 128, 3)]


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    """A limit of OpenCV's writer: the colours of these codecs are stored for 2 x 2 pixels."""
    path, target = write_video(tmp_path / "a.avi", size=(47, 63)), tmp_path / "b.avi"
    transform_video(VideoFrames(path), {target: lambda before, after: after}, lambda frame: frame, lambda number: None)
    assert next(iter(VideoFrames(target))).shape == (46, 62, 3)


def test_damaged_files(tmp_path, capfd):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(UserError, match="bad.mp4: cannot be read as a video"):
        VideoFrames(bad)
    path = write_video(tmp_path / "a.avi", count=1)
    frames = VideoFrames(path)
    list(frames)
    with pytest.raises(UserError, match=r"a.avi: cannot be read as a video \(no frame can be decoded\)"):
        list(frames)  # nothing is left


def test_a_target_that_cannot_be_written(tmp_path, capfd):
    path = write_video(tmp_path / "a.mp4")
    target = tmp_path / "none/b.mp4"
    with pytest.raises(UserError, match=r"b.mp4: cannot be written as a video of 64 x 48 pixels \(mp4v\)"):
        transform_video(VideoFrames(path), {target: lambda before, after: after}, lambda frame: frame, print)
