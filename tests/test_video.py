"""Restoring videos: times, colors, sizes, sound and tags are preserved, and no other files are read."""

from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from video_cases import SIZE, gray_frames, patches, read_video, write_video

av = pytest.importorskip("av")

from restormixer_arch.data.images import VIDEO_FORMATS  # noqa: E402
from restormixer_arch.data.images.video import VideoSource, container_of  # noqa: E402
from restormixer_arch.data.images.video_writer import transform_video  # noqa: E402
from restormixer_arch.errors import UserError  # noqa: E402


def centers(planes):
    """Return the mean color of the middle of each patch, which other patches do not affect."""
    height, width = planes.shape[:2]
    squares = planes.reshape(height // 16, 16, width // 16, 16, -1)
    return squares[:, 4:12, :, 4:12].mean((1, 3))


def means(path):
    return np.array([frame.planes.mean((0, 1)) for frame in read_video(path)])


def pass_on(path, target, restore=lambda frame: frame, **options):
    """Write a video with ``restore`` applied to each frame. Returns the source."""
    source = VideoSource(path)
    try:
        transform_video(source, {target: lambda before, after: after}, restore, lambda number: None, **options)
    finally:
        source.close()
    return source


def times_of(path):
    source = VideoSource(path)
    frames = [item for item in source.packets() if hasattr(item, "planes")]
    length = source.container.duration
    source.close()
    return [float(frame.time * source.time_base) for frame in frames], length


def packets_of(path, kind):
    with av.open(str(path)) as container:
        [stream] = [stream for stream in container.streams if stream.type == kind]
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("suffix", VIDEO_FORMATS)
def test_frames_are_restored_in_rgb_and_keep_their_times(tmp_path, suffix):
    path, target = write_video(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}"
    seen = []
    with closing(VideoSource(path)) as source:
        assert source.expected == 4 and source.rate == 10
        count = transform_video(source, {target: lambda before, after: after}, lambda frame: frame // 2, seen.append)
    assert count == 4 and seen == [1, 2, 3, 4] and source.left_out == set() and source.problems == []
    np.testing.assert_allclose(means(path)[:, 0], [20, 60, 100, 140], atol=2)
    np.testing.assert_allclose(means(target), means(path) / 2, atol=2)
    with closing(VideoSource(target)) as source:
        assert source.rate == 10
    assert times_of(target) == times_of(path)


def test_several_results_of_different_sizes(tmp_path):
    path = write_video(tmp_path / "a.mp4", sound=True)
    targets = {
        tmp_path / "large.mp4": lambda before, after: after,
        tmp_path / "pair.mkv": lambda before, after: np.hstack([before, after[:48, :64]]),
    }
    with closing(VideoSource(path)) as source:
        transform_video(source, targets, lambda frame: frame.repeat(2, 0).repeat(2, 1), lambda number: None)
    assert [read_video(target)[0].planes.shape for target in targets] == [(96, 128, 3), (48, 128, 3)]
    assert [len(packets_of(target, "audio")) for target in targets] == [len(packets_of(path, "audio"))] * 2


TIMES = [0, 33, 400, 433, 466, 1200, 1233, 1900]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frame_times_of_variable_frame_rates_are_preserved(tmp_path, suffix):
    path, target = write_video(tmp_path / f"a{suffix}", 8, times=TIMES), tmp_path / f"b{suffix}"
    pass_on(path, target)
    (wanted, length), (found, new_length) = times_of(path), times_of(target)
    np.testing.assert_allclose(wanted, np.array(TIMES) / 1000, atol=1e-3)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert abs(length - new_length) <= 40_000  # microseconds


def test_frames_that_avi_cannot_tell_apart_are_kept_in_order(tmp_path):
    """A file named .avi may be of another kind; in an AVI file, times are multiples of the frame rate."""
    path, target = tmp_path / "a.avi", tmp_path / "b.avi"
    write_video(tmp_path / "a.mkv", 8, times=TIMES, frames=[frame // 2 for frame in gray_frames(8)]).rename(path)
    source = pass_on(path, target)
    assert source.left_out == {"the exact times of frames (AVI has one frame rate)"} and source.problems == []
    np.testing.assert_allclose(means(target), means(path), atol=2)
    with av.open(str(target)) as container:
        found = [packet.dts for packet in container.demux(video=0) if packet.size]
    assert source.rate == 10 and found == [0, 1, 4, 5, 6, 12, 13, 19]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_dropped_frames_of_an_avi_are_not_reported_as_damaged(tmp_path, codec):
    path, target = tmp_path / "a.avi", tmp_path / "b.avi"
    write_video(path, 5, rate=1000, times=[0, 1, 4, 5, 9], codec=codec)
    source = pass_on(path, target)
    assert source.problems == [] and source.count == 10
    assert times_of(target) == times_of(path) and times_of(path)[0] == [0, 0.001, 0.004, 0.005, 0.009]


def test_frames_of_an_avi_in_another_order_keep_their_times(tmp_path):
    """H.264 with B-frames: FFmpeg's times are not in order."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10, options={"bf": "3", "b-pyramid": "normal"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number, frame in enumerate(patches(12)):
            image = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p")
            image.pts, image.time_base = number, Fraction(1, 10)
            output.mux(stream.encode(image))
        output.mux(stream.encode(None))
    np.testing.assert_allclose(times_of(path)[0], np.arange(12) / 10)


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colors_change_by_at_most_two_levels(tmp_path, matrix, full, pixels):
    path, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(path, frames=patches(), matrix=matrix, full=full, pixels=pixels)
    pass_on(path, target)
    white = 257 if pixels.endswith("10le") else 1
    for frame, before, after in zip(patches(), read_video(path), read_video(target), strict=True):
        first, second = centers(before.planes) / white, centers(after.planes) / white
        np.testing.assert_allclose(first, centers(frame), atol=3)
        np.testing.assert_allclose(second, first, atol=2)
    with av.open(str(target)) as container:
        [stream] = container.streams
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (matrix, 2 if full else 1)
        assert stream.format.name.removeprefix("yuvj").removeprefix("yuv") == pixels.removeprefix("yuv")


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [
        (".mp4", "libx264", "yuv420p"),
        (".mp4", "libx264", "yuv422p"),
        (".mkv", "libx264", "yuv420p10le"),
        (".avi", "mpeg4", "yuv420p"),
    ],
)
def test_color_edges_are_not_shifted(tmp_path, suffix, codec, pixels, rotation):
    if codec not in av.codecs_available or (rotation and suffix == ".avi"):
        pytest.skip("not available")
    frame = np.full((48, 64, 3), 128, np.uint8)
    frame[16:32, 16:32] = (200, 60, 60)
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, frames=[frame] * 2, codec=codec, pixels=pixels, rotation=rotation)
    pass_on(path, target, quality=0)
    before, after = chroma_of(path), chroma_of(target)
    white = 4 if pixels.endswith("10le") else 1
    assert np.ptp(before[1]) > 40 * white
    for plane, found in zip(before, after, strict=True):
        np.testing.assert_allclose(found, plane, atol=2 * white)


def chroma_of(path):
    """Return the stored U and V planes of the first frame."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    kind = np.uint16 if frame.format.name.endswith("10le") else np.uint8
    planes = [np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes[1:]]
    return [plane.astype(int) for plane in planes]


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), 5), ((32, 1280), 1), ((592, 32), 1)])
def test_color_matrix_of_untagged_videos_is_chosen_by_size_and_tagged(tmp_path, size, matrix):
    path, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(path, frames=patches(2, size), matrix=matrix, tagged=False)
    pass_on(path, target)
    np.testing.assert_allclose(centers(read_video(target)[0].planes), centers(patches(2, size)[0]), atol=3)
    with av.open(str(target)) as container:
        assert container.streams.video[0].codec_context.colorspace == matrix


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("size", [(49, 65), (48, 65), (49, 64), (1, 1), (2, 2)])
def test_odd_sizes_are_preserved(tmp_path, suffix, size):
    pixels = "yuv420p" if suffix == ".webm" else "yuv444p"
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, frames=gray_frames(3, size), pixels=pixels)
    pass_on(path, target)
    assert [frame.planes.shape for frame in read_video(target)] == [(*size, 3)] * 3
    np.testing.assert_allclose(means(target), means(path), atol=2)


def test_10_bit_depth_is_preserved(tmp_path):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16)[None, :, None].repeat(64, 0).repeat(3, 2)
    path, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    write_video(path, frames=[ramp] * 2, pixels="yuv444p10le")
    pass_on(path, target, quality=1)
    rows = [read_video(place)[1].planes[32, :, 1] for place in (path, target)]
    assert len(np.unique(rows[0])) > 800 and len(np.unique(rows[1])) > 600
    np.testing.assert_allclose(rows[1] / 257.0, rows[0] / 257.0, atol=1)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [(".webm", "libvpx-vp9", "yuva420p"), (".webm", "libvpx", "yuva420p"), (".mov", "prores_ks", "yuva444p10le")],
)
def test_alpha_is_preserved(tmp_path, suffix, codec, pixels):
    alpha = np.where(np.arange(64) < 32, 40, 220).astype(np.uint8)
    frames = [np.dstack([frame, np.broadcast_to(alpha, SIZE)]) for frame in gray_frames()]
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, frames=frames, codec=codec, pixels=pixels)
    source = pass_on(path, target)
    found = read_video(target)[2].planes
    assert found.shape == (*SIZE, 4) and source.left_out == set()
    white = 257 if found.dtype == np.uint16 else 1
    np.testing.assert_allclose(found[24, [8, 56], 3] / white, [40, 220], atol=2)


@pytest.mark.parametrize(
    ("pixels", "named"), [("bgra", "4:4:4"), ("yuva444p", "4:4:4"), ("yuva422p", "4:2:2"), ("ya8", None)]
)
def test_vp9_with_alpha_subsamples_colors_and_reports_it(tmp_path, pixels, named):
    alpha = np.where(np.arange(64) < 32, 40, 220).astype(np.uint8)
    frames = [np.dstack([frame, np.broadcast_to(alpha, SIZE)]) for frame in gray_frames()]
    path, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    write_video(path, frames=frames, codec="ffv1", pixels=pixels, tagged=False)
    source = pass_on(path, target)
    found = read_video(target)[2].planes
    np.testing.assert_allclose(found[24, [8, 56], 3], [40, 220], atol=2)
    np.testing.assert_allclose(found.mean((0, 1)), read_video(path)[2].planes.mean((0, 1)), atol=3)
    assert source.left_out == ({f"the resolution of colors ({named} becomes 4:2:0)"} if named else set())


def test_alpha_that_is_not_supported_is_reported(tmp_path):
    frames = [np.dstack([frame, frame[..., 0]]) for frame in gray_frames()]
    path = write_video(tmp_path / "a.mov", frames=frames, codec="prores_ks", pixels="yuva444p10le")
    source = pass_on(path, tmp_path / "b.mp4")
    assert source.left_out == {"the alpha channel (kept in MKV, MOV and WebM)"}
    assert read_video(tmp_path / "b.mp4")[0].planes.shape == (*SIZE, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_frames_are_restored_upright_and_keep_their_rotation(tmp_path, suffix, rotation):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = (250, 20, 20)  # red in the upper left corner of the stored frame
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, frames=[frame] * 3, rotation=rotation)
    seen = []
    pass_on(path, target, lambda planes: seen.append(planes) or planes)
    np.testing.assert_allclose(seen[0].mean((0, 1)), np.rot90(frame, rotation // 90).mean((0, 1)), atol=3)
    for corner in ((4, 4), (4, -4), (-4, 4), (-4, -4)):
        np.testing.assert_allclose(seen[0][corner], np.rot90(frame, rotation // 90)[corner], atol=6)
    with av.open(str(target)) as container:
        first = next(container.decode(video=0))
        assert (first.rotation, first.width, first.height) == (rotation, 64, 48) or abs(first.rotation) == 180


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_and_tags_are_copied(tmp_path, suffix):
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, 10, sound=True, metadata={"title": "Mühle", "comment": "of 1900"}, aspect=Fraction(4, 3))
    source = pass_on(path, target)
    assert packets_of(target, "audio") == packets_of(path, "audio") and source.left_out == set()
    with av.open(str(target)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert tags["title"] == "Mühle" and tags["comment"] == "of 1900"
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        audio = container.streams.audio[0]
        assert abs((audio.start_time or 0) * audio.time_base) < 0.05


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_quality_0_is_lossless(tmp_path, pixels):
    """Except for the rounding of subsampled colors."""
    deep = pixels.endswith("10le")
    ramp = np.add.outer(np.arange(48) * 700, np.arange(64) * 500).astype(np.uint16)
    frame = np.repeat(ramp[..., None], 3, 2)
    frames = (
        [frame, np.roll(frame, 3, 1)] if deep else [(image >> 8).astype(np.uint8) for image in (frame, frame[::-1])]
    )
    path, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_video(path, frames=frames, pixels=pixels)
    pass_on(path, target, quality=0)
    before, after = ([frame.to_ndarray() for frame in av.open(str(file)).decode(video=0)] for file in (path, target))
    assert len(before) == len(after) == 2
    assert max(np.abs(b.astype(int) - a).max() for b, a in zip(before, after, strict=True)) <= 1


DEVICE = {
    "com.apple.quicktime.location.ISO6709": "+48.1371+011.5754/",
    "com.apple.quicktime.creationdate": "2024-05-01T12:00:00+0200",
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_tags_of_a_phone_are_copied(tmp_path, suffix):
    path, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_video(path, 10, metadata={"title": "Mühle", "make": "A", **DEVICE}, every_tag=True)
    assert pass_on(path, target).left_out == set()
    with av.open(str(target)) as container:
        found = dict(container.metadata)
    assert found.items() >= {"title": "Mühle", "make": "A", **DEVICE}.items()


def test_tags_that_the_container_does_not_support_are_reported(tmp_path):
    write_video(tmp_path / "a.mp4", 10, metadata={"title": "Mühle", "make": "A", "own": "B"}, every_tag=True)
    source = pass_on(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert source.left_out == {"the tag make", "the tag own"}
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["title"] == "Mühle"


def test_subtitles_chapters_and_attachments_are_copied(tmp_path):
    plain, path, target = write_video(tmp_path / "plain.mkv"), tmp_path / "a.mkv", tmp_path / "b.mkv"
    chapter = {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}}
    with av.open(str(plain)) as source, av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        words = output.add_mux_stream("subrip")
        output.set_chapters([chapter])
        output.add_attachment("font.ttf", "font/ttf", b"letters")
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                output.mux(packet)
        line = av.Packet(b"Hello")
        line.pts = line.dts = 100
        line.duration, line.time_base, line.stream = 100, Fraction(1, 1000), words
        output.mux(line)
    source = pass_on(path, target)
    assert packets_of(target, "subtitle") == [b"Hello"] and source.left_out == set()
    with av.open(str(target)) as container:
        assert [one["metadata"]["title"] for one in container.chapters()] == ["One"]
        assert [stream.data for stream in container.streams.attachments] == [b"letters"]


def test_tracks_that_the_container_does_not_support_are_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", sound=True)
    source = pass_on(path, tmp_path / "b.webm")
    assert source.left_out == {"audio track (aac)"}


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_other_tracks_are_kept_if_the_container_rejects_one(tmp_path, codec):
    """Matroska contains both tracks, MOV only AAC."""
    path, target = tmp_path / "a.mov", tmp_path / "b.mov"
    plain = write_video(tmp_path / "plain.mkv", sound=True)
    with av.open(str(plain)) as source, av.open(str(tmp_path / "a.mkv"), "w") as output:
        tracks = [output.add_stream_from_template(stream) for stream in source.streams]
        rejected = output.add_stream(codec, rate=48000)
        rejected.layout = "mono"
        for packet in source.demux():
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                output.mux(packet)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
        samples.sample_rate, samples.pts = 48000, 0
        output.mux(rejected.encode(samples))
        output.mux(rejected.encode(None))
    (tmp_path / "a.mkv").rename(path)
    source = pass_on(path, target)
    assert source.left_out == {f"audio track ({codec.removeprefix('lib')})"}
    assert packets_of(target, "audio") == packets_of(plain, "audio")
    np.testing.assert_allclose(means(target), means(path), atol=2)


def test_lower_quality_values_give_larger_files(tmp_path):
    noise = [np.random.default_rng(n).integers(0, 256, (96, 128, 3), np.uint8) for n in range(4)]
    path = write_video(tmp_path / "a.mp4", frames=noise)
    sizes = []
    for quality in (0, 14, 40):
        pass_on(path, tmp_path / "b.mp4", quality=quality)
        sizes.append((tmp_path / "b.mp4").stat().st_size)
    assert sizes[0] > 1.2 * sizes[1] > 3 * sizes[2]


# --- rejected files --------------------------------------------------------------------------------------------------


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nneighbor.mp4\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile neighbor.mp4\n"
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"


@pytest.mark.parametrize("content", [b"no video", PLAYLIST, CONCAT, SDP, b"<?xml version='1.0'?><MPD/>"])
def test_only_known_containers_are_opened(tmp_path, content, capfd):
    write_video(tmp_path / "neighbor.mp4")
    bad = tmp_path / "film.mp4"
    bad.write_bytes(content)
    with pytest.raises(
        UserError, match=r"film.mp4: cannot be read as a video \(not an AVI, MP4, MOV, MKV or WebM file"
    ):
        VideoSource(bad)
    assert container_of(content) is None and capfd.readouterr().err == ""


def test_truncated_mp4_is_rejected_and_truncated_avi_is_partly_restored(tmp_path, capfd):
    whole = write_video(tmp_path / "a.mp4", 10, frames=patches(10)).read_bytes()
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(whole[:2000])  # the index is at the end
    with pytest.raises(UserError, match=r"bad.mp4: cannot be read as a video \("):
        VideoSource(bad)
    noise = list(np.random.default_rng(0).integers(0, 256, (10, 96, 128, 3), np.uint8))
    whole = write_video(tmp_path / "a.avi", frames=noise).read_bytes()
    bad = tmp_path / "bad.avi"
    bad.write_bytes(whole[: len(whole) * 2 // 3])
    source = pass_on(bad, tmp_path / "b.avi")
    assert source.problems and 0 < len(read_video(tmp_path / "b.avi")) < 10
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_missing_file_or_folder_is_rejected(tmp_path, kind):
    path = tmp_path / "film.mp4"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"film.mp4: cannot be read as a video \((No such file|Is a dir|Permission)"):
        VideoSource(path)


def test_video_whose_frame_size_changes_is_rejected(tmp_path):
    path, target = tmp_path / "a.mkv", tmp_path / "b.mkv"
    parts = [
        write_video(tmp_path / f"{width}.mkv", 2, frames=gray_frames(2, (48, width)), codec="mjpeg", pixels="yuvj420p")
        for width in (64, 80)
    ]
    with av.open(str(path), "w") as output:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                for packet in source.demux():
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + 200 * number  # in milliseconds
                        packet.stream = stream
                        output.mux(packet)
    change = "frame 3 at 0.20 s has 80 x 48 pixels, those before it 64 x 48; split the video there"
    with pytest.raises(UserError, match=f"a.mkv: {change}$"):
        pass_on(path, target)


def test_unknown_codec_is_rejected(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(UserError, match=r"a\.mp4: cannot be read as a video \(unknown codec or size\)$"):
        VideoSource(path)


def test_pixel_limit(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"Image size \(3072 pixels\) exceeds limit of 3071 pixels"):
        VideoSource(path, 3071)
    VideoSource(path, 3072).close()


def test_target_that_cannot_be_written_raises_os_error(tmp_path, capfd):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(OSError, match="none/b.mp4"):
        pass_on(path, tmp_path / "none/b.mp4")
