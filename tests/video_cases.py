"""Small videos for several test files. A test that needs one is skipped if PyAV is not installed."""

from fractions import Fraction

import numpy as np
import pytest

from restormixer_arch.data.images import VIDEO_FORMATS

SIZE = (48, 64)
CODECS = {".webm": "libvpx-vp9"}
PALETTE = np.array(
    [[200, 40, 40], [40, 180, 60], [40, 60, 200], [128, 128, 128], [220, 220, 220], [16, 16, 16]], np.uint8
)


def gray_frames(count=4, size=SIZE):
    """Return frames of one color each: red increases, green and blue are constant."""
    return [np.full((*size, 3), (20 + 40 * number, 100, 200), np.uint8) for number in range(count)]


def patches(count=4, size=SIZE):
    """Return frames of colored patches of 16 x 16 pixels, which move by 16 pixels per frame."""
    height, width = size
    numbers = (np.arange(height)[:, None] // 16 + np.arange(width) // 16) % len(PALETTE)
    return [PALETTE[(numbers + shift) % len(PALETTE)] for shift in range(count)]


def write_video(
    path,
    count=4,
    *,
    frames=None,
    rate=10,
    times=None,
    pixels="yuv420p",
    matrix=5,
    full=False,
    tagged=True,
    rotation=0,
    sound=False,
    codec=None,
    metadata=None,
    aspect=None,
    every_tag=False,
):
    """Write frames, RGB or RGBA, uint8 or uint16; ``times`` are in milliseconds."""
    av = pytest.importorskip("av")
    frames = gray_frames(count) if frames is None else frames
    container = {"movflags": "use_metadata_tags"} if every_tag else {}
    with av.open(str(path), "w", format=VIDEO_FORMATS[path.suffix], container_options=container) as output:
        output.metadata.update(metadata or {})
        codec = codec or CODECS.get(path.suffix, "libx264")
        options = (
            {"crf": "1"} if codec == "libx264" else {"crf": "5", "b": "1000000"} if codec.startswith("libvpx") else {}
        )
        options |= {"bf": "0"} if path.suffix == ".avi" and codec == "libx264" else {}
        options |= {"auto-alt-ref": "0"} if pixels.startswith("yuva") and codec.startswith("libvpx") else {}
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        base = Fraction(1, 1000) if times else Fraction(1, rate)
        stream.time_base = stream.codec_context.time_base = base
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        if pixels.startswith("yuva"):
            stream.metadata["alpha_mode"] = "1"
        track = output.add_stream("aac", rate=44100) if sound else None
        if track:
            track.layout = "mono"
        for number, frame in enumerate(frames):
            kind = {3: "rgb", 4: "rgba"}[frame.shape[2]]
            kind += {("rgb", 1): "24", ("rgb", 2): "48le", ("rgba", 2): "64le"}.get((kind, frame.itemsize), "")
            image = av.VideoFrame.from_ndarray(frame, kind).reformat(
                format=pixels,
                interpolation=0x4 | 0x40000 | 0x2000 | 0x4000,
                dst_colorspace=matrix,
                src_color_range=2,
                dst_color_range=2 if full else 1,
            )
            image.pts, image.time_base = times[number] if times else number, base
            if tagged:
                image.colorspace, image.color_range = matrix, 2 if full else 1
            output.mux(stream.encode(image))
        output.mux(stream.encode(None))
        if track:
            tone = np.sin(np.arange(44100) * 0.05, dtype=np.float32)[None]
            for start in range(0, 44100 - 1024, 1024):
                samples = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
                samples.sample_rate, samples.pts = 44100, start
                output.mux(track.encode(samples))
            output.mux(track.encode(None))
    return path


def read_video(path):
    """Return the frames of a video."""
    from restormixer_arch.data.images.video import VideoSource  # imports PyAV

    source = VideoSource(path)
    frames = [item for item in source.packets() if hasattr(item, "planes")]
    source.close()
    return frames
