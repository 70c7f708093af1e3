"""Read video files frame by frame with PyAV, upright and in the colors that players show.

Only the file itself is read: it is passed as an open file, its first bytes determine the container, and no other file
that it refers to is opened.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from restormixer_arch.data.images import pixel_limit, pixel_problem
from restormixer_arch.errors import UserError

try:
    import av
    from av.video.reformatter import Interpolation
except ImportError as error:
    raise UserError("videos are read and written by PyAV: pip install 'restormixer[video]'") from error

av.logging.set_level(None)  # problems are reported by this module instead

DEFAULT_RATE = Fraction(25)  # frames per second, for files that do not specify it
# swscale's default makes every frame one or two levels darker. Chroma values that pixels share are copied to each of
# them when reading and averaged when writing, so pixels that a network does not change are restored exactly.
ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
UPSAMPLE_CHROMA, DOWNSAMPLE_CHROMA = ACCURATE | Interpolation.POINT, ACCURATE | Interpolation.AREA
BT709, BT601 = 1, 5  # FFmpeg's matrix numbers; 0 is RGB
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # FFmpeg's number -> swscale's
LIMITED, FULL = 1, 2  # color ranges
HD_WIDTH, HD_HEIGHT = 1280, 576  # from this width, or above this height, untagged videos are treated as BT.709
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders ignore alpha


@dataclass(frozen=True)
class VideoFrame:
    """A decoded frame.

    Attributes:
        planes: uint8 or uint16 array (H, W, 3 or 4), RGB or RGBA, upright.
        time: time at which the frame is shown, in units of the video's ``time_base``.
        duration: duration in the same units; 0 if the file does not specify it.
    """

    planes: np.ndarray
    time: int
    duration: int


class VideoSource:
    """A video file to restore; iterate over :meth:`packets`.

    Attributes:
        count: number of frames according to the file, 0 if it does not specify it.
        expected: ``count``, or an estimate from the duration if it is 0.
        rate: average number of frames per second.
        time_base: seconds per unit of time.
        matrix, range: FFmpeg's numbers of the YUV matrix and color range, from the tags, or else from the pixel format
            and the size.
        primaries, transfer: FFmpeg's numbers of the color primaries and transfer function, from the tags.
        display_matrix: nine numbers by which a player rotates the frames, or None.
        turns: number of counterclockwise quarter turns that make a frame upright.
        problems: descriptions of what is wrong with the file, for the user.

    Raises:
        UserError: if the file is not a video in a supported container, or has too many pixels.
    """

    def __init__(self, path: str | Path, max_pixels: int | None = None) -> None:
        self.path, limit = path, max_pixels or pixel_limit()
        self._file = self.container = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115, closed by close()
            self._open(limit)
        except (av.FFmpegError, ValueError, OSError, MemoryError) as error:
            for opened in (self.container, self._file):
                if opened is not None:
                    opened.close()
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: cannot be read as a video ({_reason(error)})") from error

    def _open(self, limit: int) -> None:
        start = self._file.read(64)
        self._file.seek(0)
        if not start:
            raise UserError(f"{self.path}: cannot be read as a video (it is empty)")
        kind = container_of(start)
        if kind is None:
            raise UserError(f"{self.path}: cannot be read as a video (not an AVI, MP4, MOV, MKV or WebM file)")
        options = {"protocol_whitelist": "none", "max_pixels": str(limit)}
        self.container = av.open(
            self._file, "r", format=kind, options=options, io_open=_refuse, metadata_errors="replace"
        )
        videos = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if not videos:
            raise UserError(f"{self.path}: cannot be read as a video (no video track)")
        self.stream = stream = videos[0]
        if stream.codec_context is None or not stream.width or not stream.height:
            raise UserError(f"{self.path}: cannot be read as a video (unknown codec or size)")
        if problem := pixel_problem(stream.width, stream.height, limit):
            raise UserError(f"{self.path}: cannot be read as a video ({problem})")
        self._is_avi = kind == "avi"
        self.time_base = stream.time_base or Fraction(1, 1000)
        rate = stream.average_rate or stream.guessed_rate
        self.rate = rate if rate and 0 < rate <= 1000 else DEFAULT_RATE
        self.count = stream.frames
        seconds = (self.container.duration or 0) / av.time_base
        self.expected = self.count or round(seconds * float(self.rate))
        tags = {name.lower(): value for name, value in stream.metadata.items()}
        self._decoder = stream.codec_context
        if tags.get("alpha_mode") == "1" and self._decoder.name in ALPHA_DECODERS:
            self._decoder = av.CodecContext.create(ALPHA_DECODERS[stream.codec_context.name], "r")
        else:
            self._decoder.thread_type = "AUTO"
        self.format, self.interlaced, self.display_matrix, self.turns = stream.format, False, None, 0
        self.matrix = self.range = self.primaries = self.transfer = 0
        self.problems: list[str] = []
        self.left_out: set[str] = set()
        self._last: int | None = None
        self._first_packet: int | None = None
        self._last_packet: int | None = None
        self._shift = 0
        self._number = self._discarded = self._dropped = self._damaged = 0

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self._file.close()

    def packets(self) -> Iterator[VideoFrame | Any]:
        """Yield the frames and, between them, the packets of audio and other tracks, in the order of the file.

        Raises:
            UserError: if no frame can be decoded, or a frame has another size than those before it.
        """
        packets = self.container.demux()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.stream is not self.stream:
                    if packet.size:
                        yield packet
                    continue
                self._count(packet)
                frames = self._decoder.decode(packet if packet.size else None)
            except (av.FFmpegError, ValueError) as error:
                self._damaged += 1
                if isinstance(error, av.EOFError) or self._damaged > 1000:
                    break
                continue
            for frame in frames:
                yield self._converted(frame)
        if self._number == 0:
            raise UserError(f"{self.path}: cannot be read as a video (no frame can be decoded)")
        lost = self.count - self._discarded - self._dropped - self._number
        if lost > 0:
            self.problems.append(f"only {self._number} of its {self.count} frames could be decoded")
        elif self._damaged:
            self.problems.append(f"{self._damaged} damaged parts were skipped")

    def _count(self, packet: av.Packet) -> None:
        """Count what :attr:`count` includes, but decoding does not return."""
        self._discarded += packet.is_discard
        if packet.dts is None:
            return
        if self._first_packet is None:
            self._first_packet = packet.dts
        elif self._is_avi:  # its times are numbers of frames, including empty, dropped ones
            self._dropped += max(packet.dts - self._last_packet - 1, 0)
        self._last_packet = packet.dts

    def _converted(self, frame: av.VideoFrame) -> VideoFrame:
        if self._number == 0:
            self._describe(frame)
        self._number += 1
        size = frame.width, frame.height
        if size != self._size:
            at = "" if frame.time is None else f" at {frame.time:.2f} s"
            now, before = (f"{width} x {height}" for width, height in (size, self._size))
            change = f"frame {self._number}{at} has {now} pixels, those before it {before}"
            raise UserError(f"{self.path}: {change}; split the video there")
        deep = bits_of(frame.format) > 8
        kind = ("rgba" if has_alpha(frame.format) else "rgb") + (
            "64le" if deep and has_alpha(frame.format) else "48le" if deep else "" if has_alpha(frame.format) else "24"
        )
        converted = _centered(frame).reformat(
            format=kind,
            interpolation=UPSAMPLE_CHROMA,
            src_colorspace=MATRICES.get(self.matrix),
            src_color_range=self.range,
            dst_color_range=FULL,
        )
        planes = np.ascontiguousarray(np.rot90(converted.to_ndarray(), self.turns))
        step = max(1, round(1 / self.rate / self.time_base))
        shown = self._shown(frame)
        if shown is None:  # the file has no timestamp for it
            time = 0 if self._last is None else self._last + step
        else:
            time = shown - self._shift
        if self._last is not None and time <= self._last:
            time = self._last + 1
        self._last = time
        return VideoFrame(planes, time, frame.duration or 0)

    def _describe(self, frame: av.VideoFrame) -> None:
        """Set the size, the color properties and the rotation from the first frame."""
        self.format, self._size = frame.format, (frame.width, frame.height)
        is_rgb = frame.format.is_rgb
        hd = frame.width >= HD_WIDTH or frame.height > HD_HEIGHT
        tagged = int(frame.colorspace)
        self.matrix = tagged if tagged in MATRICES else (BT709 if is_rgb or hd else BT601)
        full = is_rgb or frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL
        self.range = FULL if full else LIMITED
        self.primaries, self.transfer = int(frame.color_primaries), int(frame.color_trc)
        self.interlaced = frame.interlaced_frame
        if self.interlaced:
            self.left_out.add("the flag for interlaced video")
        for data in frame.side_data:
            name = getattr(data.type, "name", "")
            if name == "DISPLAYMATRIX" and len(bytes(data)) >= 36:
                self.display_matrix = struct.unpack("=9i", bytes(data)[:36])
            if name in ("MASTERING_DISPLAY_METADATA", "DYNAMIC_HDR_PLUS", "DOVI_METADATA", "DOVI_RPU_BUFFER"):
                self.left_out.add("HDR metadata of the display")
        self.turns = round(frame.rotation / 90) % 4
        shown = self._shown(frame)
        if self._is_avi and shown is not None and self._first_packet is not None:
            self._shift = shown - self._first_packet  # frames that are stored in another order are decoded later

    def _shown(self, frame: av.VideoFrame) -> int | None:
        """Return the time of a frame, None if the file does not specify it.

        AVI only counts packets. What FFmpeg derives from that for H.264 is wrong if frames were dropped or are stored
        in another order; the packets themselves are in the order of time, so each frame gets the time of a packet.
        """
        return frame.dts if self._is_avi else frame.pts


def container_of(start: bytes) -> str | None:
    """Return FFmpeg's name of the container that starts with these bytes, None if it is not supported."""
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot"):
        return "mov"
    if start.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    return None


def bits_of(format: av.VideoFormat) -> int:
    """Return the bits per sample of a pixel format."""
    return max((component.bits for component in format.components), default=8)


def has_alpha(format: av.VideoFormat) -> bool:
    """Return whether a pixel format has an alpha channel."""
    return any(component.is_alpha for component in format.components)


def _centered(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the frame without its chroma location, which the written frames do not have either.

    Otherwise swscale would shift the colors by half a pixel when converting to RGB, and not shift them back.
    """
    if frame.format.is_rgb or (frame.format.chroma_width(64), frame.format.chroma_height(64)) == (64, 64):
        return frame
    plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for target, plane in zip(plain.planes, frame.planes, strict=True):
        old, new = (np.frombuffer(one, np.uint8).reshape(one.height, -1) for one in (plane, target))
        length = min(old.shape[1], new.shape[1])
        new[:, :length] = old[:: 1 if plane.line_size > 0 else -1, :length]  # some frames are stored upside down
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(plain, name, getattr(frame, name))
    return plain


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    raise OSError(f"the file points to another one, {url!r}")


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).partition("\n")[0]
