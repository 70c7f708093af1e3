"""Write restored videos with PyAV as H.264, VP9 or ProRes; audio, subtitles and tags are copied."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange

from restormixer_arch.data.images import VIDEO_FORMATS
from restormixer_arch.data.images.video import (
    DOWNSAMPLE_CHROMA,
    FULL,
    MATRICES,
    VideoFrame,
    VideoSource,
    bits_of,
    has_alpha,
)
from restormixer_arch.errors import UserError

QUALITY, WORST = 12, 51  # default and maximum constant rate factor of H.264; 0 is lossless
VP9_WORST = 63
OWN_TAGS = (
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "duration",
    "alpha_mode",
    "number_of_frames",
)
OWN_TAGS += ("number_of_bytes", "bps")
Compose = Callable[[np.ndarray, np.ndarray], np.ndarray]


def transform_video(
    source: VideoSource,
    targets: dict[Path, Compose],
    restore: Callable[[np.ndarray], np.ndarray],
    on_frame: Callable[[int], None],
    quality: int = QUALITY,
) -> int:
    """Restore a video, and write one or more videos from its original and restored frames.

    Args:
        source: video to read. What cannot be kept is added to its ``left_out``.
        targets: output file -> function of (frame, restored frame) that returns the frame to write; all are uint8 or
            uint16 (H, W, 3 or 4), RGB or RGBA. The suffix determines the container.
        restore: function that restores a frame.
        on_frame: function that is called after each frame with its number, starting at 1.
        quality: constant rate factor from 0 (lossless) to 51.

    Returns:
        The number of frames.

    Raises:
        UserError: if a file cannot be written, or no frame can be read.
        OSError: if the file system reports an error, such as a full disk.
    """
    writers = {path: _Writer(path, source, quality) for path in targets}
    number, waiting = 0, []
    try:
        for item in source.packets():
            if not isinstance(item, VideoFrame):
                if number == 0:
                    waiting.append(item)  # the output starts with the first frame
                else:
                    _copy(item, writers)
                continue
            number += 1
            result = restore(item.planes)
            for path, compose in targets.items():
                writers[path].write(compose(item.planes, result), item)
            for packet in waiting:
                _copy(packet, writers)
            waiting.clear()
            on_frame(number)
        for writer in writers.values():
            writer.finish()
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, UserError | OSError) and not isinstance(error, av.FFmpegError):
            raise
        if isinstance(error, OSError) and error.errno in (27, 28):  # file too large, disk full
            raise
        raise UserError(f"{source.path}: cannot be written as a video ({error})") from error
    finally:
        for writer in writers.values():
            writer.close()
    return number


def _copy(packet: av.Packet, writers: dict[Path, _Writer]) -> None:
    """Write a packet of another track to each file; writing changes it, so all files but the last get a copy."""
    *others, last = writers.values()
    for writer in others:
        copied = av.Packet(bytes(packet))
        for name in ("pts", "dts", "duration", "time_base", "is_keyframe"):
            setattr(copied, name, getattr(packet, name))
        writer.copy(copied, packet.stream)
    last.copy(packet, packet.stream)


class _Writer:
    """A video file that is written frame by frame."""

    def __init__(self, path: Path, source: VideoSource, quality: int) -> None:
        self.path, self.source, self.quality = path, source, quality
        self.kind = VIDEO_FORMATS[path.suffix.lower()]
        self._file = open(path, "wb")  # noqa: SIM115, closed by close()
        self._output: Any = None
        self._tracks: dict[int, Any] = {}
        self._durations: dict[int, int] = {}
        self._last: int | None = None  # time of the previous frame in the source's units, and in those of the output
        self._written: int | None = None

    def _start(self, planes: np.ndarray) -> None:
        """Open the output for frames like ``planes``, without the tracks that the container rejects."""
        tracks = [track for track in self.source.container.streams if track is not self.source.stream]
        try:
            self._open(planes, tracks, self._file)
        except (av.FFmpegError, ValueError):
            fitting = [track for track in tracks if self._fits(planes, track)]
            self._file.seek(0)
            self._file.truncate()
            self._open(planes, fitting, self._file)

    def _fits(self, planes: np.ndarray, track: Any) -> bool:
        """Return whether the container accepts a track next to the video; list it in ``left_out`` if not."""
        try:
            self._open(planes, [track], BytesIO())
        except (av.FFmpegError, ValueError):
            self._leave_out(track)
            return False
        return True

    def _open(self, planes: np.ndarray, tracks: list[Any], file: BinaryIO) -> None:
        """Write the header of a file with some of the source's other tracks."""
        self._tracks.clear()
        source, turned = self.source, self.source.turns % 2
        height, width = planes.shape[1::-1] if turned else planes.shape[:2]
        codec, pixels, options = _encoder(self.kind, source, (height, width), self.quality)
        self._tags = _own(source.container.metadata)
        # Without use_metadata_tags, MOV and MP4 keep only listed tags; with it all, but some players miss the title.
        of_device = self.kind in ("mov", "mp4") and any("." in key for key in self._tags)  # com.apple.quicktime.make
        container = {"movflags": "use_metadata_tags"} if of_device else {}
        self._output = output = av.open(file, "w", format=self.kind, container_options=container)
        output.metadata.update(self._tags)
        stream = output.add_stream(codec, rate=source.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        self._base = Fraction(1) / source.rate if self.kind == "avi" else source.time_base
        context = stream.codec_context
        context.time_base = stream.time_base = self._base
        context.bit_rate = 0
        context.colorspace, context.color_range = source.matrix, source.range
        context.color_primaries, context.color_trc = source.primaries, source.transfer
        if source.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = source.stream.sample_aspect_ratio
        if source.display_matrix:
            stream.set_display_matrix(source.display_matrix)
        stream.metadata.update(_own(source.stream.metadata))
        if pixels.startswith("yuva") and codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
        self._stream = stream
        for track in tracks:
            self._add_track(track)
        chapters = source.container.chapters()
        if chapters:
            output.set_chapters(chapters)
        output.start_encoding()

    def _add_track(self, track: Any) -> None:
        """Add a track to copy, or list it in ``left_out`` if that is not possible."""
        try:
            if track.type == "attachment":
                self._output.add_attachment(track.name or "file", track.mimetype or "", track.data)
                return
            if track.type not in ("audio", "subtitle", "video") or track.codec_context is None:
                raise ValueError
            copied = self._output.add_stream_from_template(track, opaque=True)
            copied.metadata.update(_own(track.metadata))
            copied.disposition = track.disposition
            self._tracks[track.index] = copied
        except (ValueError, TypeError, av.FFmpegError):
            self._leave_out(track)

    def _leave_out(self, track: Any) -> None:
        name = getattr(track.codec_context, "name", None) or "unknown"
        self.source.left_out.add(f"{track.type} track ({name})")

    def _time(self, frame: VideoFrame) -> int:
        """Return the time of a frame in units of the output, and record the duration of the frame before it."""
        time = round(frame.time * self.source.time_base / self._base)
        if self._last is not None:
            self._durations[self._written] = frame.time - self._last
            if time <= self._written:
                self.source.left_out.add("the exact times of frames (AVI has one frame rate)")
                time = self._written + 1
        self._last, self._written = frame.time, time
        self._durations[time] = frame.duration
        return time

    def write(self, planes: np.ndarray, frame: VideoFrame) -> None:
        if self._output is None:
            self._start(planes)
        turned = np.ascontiguousarray(np.rot90(planes, -self.source.turns))
        deep, alpha = planes.dtype == np.uint16, planes.shape[2] == 4
        kind = {(False, False): "rgb24", (False, True): "rgba", (True, False): "rgb48le", (True, True): "rgba64le"}
        image = av.VideoFrame.from_ndarray(turned, kind[deep, alpha])
        image = image.reformat(
            width=self._stream.width,
            height=self._stream.height,
            format=self._stream.pix_fmt,
            interpolation=DOWNSAMPLE_CHROMA,
            dst_colorspace=MATRICES[self.source.matrix],
            src_color_range=FULL,
            dst_color_range=self.source.range,
        )
        image.colorspace, image.color_range = self.source.matrix, ColorRange(self.source.range)
        image.color_primaries, image.color_trc = self.source.primaries, self.source.transfer
        image.pts, image.time_base = self._time(frame), self._base
        image.duration = round(frame.duration * self.source.time_base / self._base)
        self._mux(self._stream.encode(image))

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            ticks = packet.pts * packet.time_base / self._base if packet.pts is not None else -1
            duration = self._durations.get(round(ticks), 0)
            if duration > 0:
                packet.duration = max(1, round(duration * self.source.time_base / packet.time_base))
            self._output.mux(packet)

    def copy(self, packet: av.Packet, track: Any) -> None:
        if track.index not in self._tracks:
            return
        if packet.dts is None and track.type != "video":
            packet.dts = packet.pts
        packet.stream = self._tracks[track.index]
        try:
            self._output.mux(packet)
        except (av.InvalidDataError, av.ArgumentError):  # a timestamp is missing or too early
            self.source.left_out.add(f"damaged parts of a {track.type} track")

    def finish(self) -> None:
        """Write the remaining frames of the encoder, complete the file, and list missing tags in ``left_out``."""
        if self._output is not None:
            self._mux(self._stream.encode(None))
            self._output.close()
            self._output = None
            self._file.close()
            with av.open(str(self.path), format=self.kind) as written:
                kept = {_base(key) for key in written.metadata}
            self.source.left_out |= {f"the tag {key}" for key in map(_base, self._tags) if key not in kept}
        self._file.close()

    def close(self) -> None:
        """Close the file, even if it is incomplete."""
        self._file.close()  # before the container, which then does not write a trailer


def _encoder(kind: str, source: VideoSource, size: tuple[int, int], quality: int) -> tuple[str, str, dict[str, str]]:
    """Return the codec, pixel format and options; list what they cannot keep in ``source.left_out``."""
    bits, alpha = bits_of(source.format), has_alpha(source.format)
    chroma = _chroma(source.format)
    most = 8 if kind == "webm" or (alpha and kind == "matroska") else 10
    if bits > most and source.stream.codec_context.name != "prores":  # ProRes has 10 bits, but FFmpeg decodes it to 12
        source.left_out.add(f"{bits - most} of {bits} bits per sample")
    if alpha and kind == "mov":
        return "prores_ks", "yuva444p10le", {"profile": "4444"}
    if kind == "webm" or (alpha and kind == "matroska"):
        if alpha and chroma != "420":
            source.left_out.add(f"the resolution of colors ({':'.join(chroma)} becomes 4:2:0)")
        pixels = "yuva420p" if alpha else f"yuv{chroma}p"
        crf = round(quality * VP9_WORST / WORST)
        speed = {"deadline": "good", "cpu-used": "2", "row-mt": "1", "lag-in-frames": "16"}
        return "libvpx-vp9", pixels, {"crf": str(crf), "b": "0", "auto-alt-ref": "0" if alpha else "1", **speed}
    if alpha:
        source.left_out.add("the alpha channel (kept in MKV, MOV and WebM)")
    height, width = size
    if (width % 2 and chroma != "444") or (height % 2 and chroma == "420"):
        chroma = "444"  # with chroma subsampling, H.264 needs even sides
    pixels = f"yuv{chroma}p" + ("10le" if bits > 8 else "")
    rate = {"qp": "0"} if quality == 0 else {"crf": str(quality)}  # crf 0 is lossless for 8 bits only
    options = {**rate, "preset": "medium", "rc-lookahead": "20", "chromaoffset": "-3"}
    return "libx264", pixels, {**options, "bf": "0"} if kind == "avi" else options


def _chroma(format: av.VideoFormat) -> str:
    """Return the chroma subsampling of a pixel format: 444, 422 or 420."""
    if format.is_rgb or len(format.components) < 3:
        return "444" if format.is_rgb else "420"
    across, down = format.chroma_width(64), format.chroma_height(64)
    return {(64, 64): "444", (32, 64): "422", (32, 32): "420"}.get((across, down), "444")


def _base(key: str) -> str:
    """Return a tag's name without its language (``title-eng``), in lower case because containers differ in case."""
    return key.lower().partition("-")[0]


def _own(metadata: dict[str, str]) -> dict[str, str]:
    """Return the user's tags, without those that describe the input file."""
    return {
        key: value
        for key, value in metadata.items()
        if _base(key) not in OWN_TAGS and not key.startswith("_STATISTICS")
    }
