"""Build and serve the page of ``basicsr demo``; the only module that imports gradio."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import numpy as np
from gradio_client.utils import is_http_url_like
from PIL import Image
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from restormixer_arch.data.images import IMAGE_SUFFIXES, MORE_IMAGE_SUFFIXES
from restormixer_arch.data.images.picture import (
    FORMATS,
    Picture,
    as_png,
    picture_size,
    read_picture,
    to_pillow,
    write_picture,
)
from restormixer_arch.errors import UserError
from restormixer_arch.inference.restore import restore_picture
from restormixer_arch.inference.restorer import Restorer

MAX_BYTES = 100 * 2**20
MAX_PIXELS = 50 * 10**6
PREVIEW = 1600  # longer side of the images in the slider, in pixels
MAX_QUEUED = 8  # maximum number of images in the queue
KEEP_SECONDS = 3600  # seconds for which images are kept in the temporary folder while the server runs
INTRODUCTION = f"""# RestorMixer
Drop a picture, restore it, compare, download. Pictures stay on the computer that runs this page.
Up to {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels: {", ".join(FORMATS)}."""
CSS = ".gradio-container { max-width: 1100px !important; margin: auto }"
FONTS = ["system-ui", "sans-serif"]


class Page:
    """A page and its server.

    Args:
        tasks: tasks to choose from; the first one is preselected.
        restorer_for: function that returns the restorer of a task.
        folder: gradio's temporary folder, for all files that are written; the caller removes it.
    """

    def __init__(self, tasks: list[str], restorer_for: Callable[[str], Restorer], folder: Path) -> None:
        self._restorer_for, self._folder = restorer_for, folder
        self._closing, self._working = False, threading.Lock()
        settings = {"analytics_enabled": False, "delete_cache": (KEEP_SECONDS, KEEP_SECONDS)}
        with gr.Blocks(title="RestorMixer", **settings) as self._blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    upload = gr.File(label="Picture", file_types=[*IMAGE_SUFFIXES, *MORE_IMAGE_SUFFIXES], height=170)
                    task = gr.Dropdown(tasks, value=tasks[0], label="Task", interactive=len(tasks) > 1)
                    start = gr.Button("Restore", variant="primary", interactive=False)
                    download = gr.DownloadButton("Download", interactive=False)
                with gr.Column(scale=3, min_width=300):
                    slider = gr.ImageSlider(label="Before | after", type="filepath", buttons=["fullscreen"])
                    remark = gr.Markdown()
            _refuse_addresses(upload)
            results = [slider, download, remark]
            upload.change(self._changed, upload, [start, *results], show_progress="hidden", queue=False)
            start.click(self._restored, [upload, task], results, show_progress_on=slider, api_name="restore")

    def open(self, host: str, port: int) -> None:
        """Serve the page in a background thread."""
        self._blocks.queue(max_size=MAX_QUEUED, default_concurrency_limit=1)
        self._blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inline=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=MAX_BYTES,
            footer_links=[],
            theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
            css=CSS,
            app_kwargs={"middleware": [Middleware(LocalRequests, host=host)]},
        )

    def close(self) -> None:
        """Stop the server, and a restoration after its current tile: torch aborts a process that exits during it."""
        self._closing = True
        if self._blocks.is_running:
            logging.getLogger("uvicorn.error").disabled = True  # it logs each connection that is closed
            self._blocks.server.force_exit = True  # do not wait for browsers that keep their connections open
        self._blocks.close(verbose=False)
        with self._working:
            pass

    def _changed(self, upload: str | None) -> tuple[dict, None, dict, str]:
        return gr.update(interactive=upload is not None), None, gr.update(value=None, interactive=False), ""

    def _restored(
        self,
        upload: str | None,
        task: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, gradio's way
    ) -> tuple[tuple[str, str], dict, str]:
        """Return the two images of the slider, the file to download, and a line with size and duration."""
        if upload is None:
            raise gr.Error("No image was uploaded.", print_exception=False)
        name, began = Path(upload).name, time.monotonic()
        try:
            with self._working:
                picture, result = self._pair(Path(upload), task, progress)
                place = Path(tempfile.mkdtemp(dir=self._folder))
                target = place / f"{Path(upload).stem}_restored.png"
                write_picture(result, target)
                pair = [write_preview(one, result, place / f"{n}.png") for n, one in enumerate((picture, result))]
        except UserError as error:
            message = str(error).replace(upload, name)
            raise gr.Error(message, title="Not restored", duration=None, print_exception=False) from error
        height, width = result.pixels.shape[:2]
        remark = f"{width} x {height} pixels in {time.monotonic() - began:.1f} s"
        return (str(pair[0]), str(pair[1])), gr.update(value=str(target), interactive=True), remark

    def _pair(self, upload: Path, task: str, progress: gr.Progress) -> tuple[Picture, Picture]:
        """Return the image before and after restoration."""

        def on_tile(done: int, total: int) -> None:
            if self._closing:
                raise UserError("the server was stopped")
            progress((done, total), desc="restoring", unit="tiles")

        check_picture(upload)
        picture = read_picture(upload)
        restorer = self._restorer_for(task)
        progress(0, desc="restoring")
        return picture, as_png(restore_picture(restorer, picture, on_tile))


class LocalRequests:
    """Middleware that accepts only requests to an IP address, ``localhost`` or the host name of ``--host``.

    Another site can use a host name that points to this computer (DNS rebinding). Requests of its pages have that name
    in ``Host``, or the site in ``Origin``, which otherwise is that of this page, and are rejected.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app, self.names = app, {"localhost", host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else {}
        host, origin = headers.get("host"), headers.get("origin")
        if (host is None or self._is_here(host)) and (origin is None or _place(origin) == _place(f"//{host}", origin)):
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse("Requests for this host are refused.", status_code=403)(scope, receive, send)

    def _is_here(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        try:
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False


def _place(address: str, scheme_of: str = "") -> tuple[str | None, int | None]:
    """Return the host and port of an address; the port defaults to that of its scheme, or of ``scheme_of``'s scheme."""
    parts = urlsplit(address)
    default = {"http": 80, "https": 443}.get(parts.scheme or urlsplit(scheme_of).scheme)
    try:
        return parts.hostname, parts.port or default
    except ValueError:  # the port is not a number
        return parts.netloc, None


def _refuse_addresses(upload: gr.File) -> None:
    """Accept only uploaded files, since gradio would also fetch a URL that is given instead of a file.

    This component is patched instead of subclassed: for a subclass, gradio would write a file next to this module.
    """
    move = upload.async_move_resource_to_block_cache

    async def move_unless_address(place: str | Path | None) -> str | None:
        if is_http_url_like(str(place).lower()):
            raise gr.Error("URLs are not fetched; upload a file.", print_exception=False)
        return await move(place)

    upload.async_move_resource_to_block_cache = move_unless_address


def check_picture(path: Path) -> None:
    """Raise UserError if an image is too large to decode, according to its file size and header."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path}: has {size / 2**20:.0f} MB, the limit is {MAX_BYTES // 2**20} MB")
    width, height = picture_size(path)
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: has {width} x {height} pixels, the limit is {MAX_PIXELS // 10**6} megapixels")


def write_preview(picture: Picture, result: Picture, path: Path) -> Path:
    """Write an image for the slider: 8 bits, in the size of ``result`` but at most :data:`PREVIEW` pixels on a side."""
    pixels = picture.pixels if picture.pixels.dtype == np.uint8 else (picture.pixels >> 8).astype(np.uint8)
    alpha = picture.alpha if picture.alpha is None or picture.alpha.dtype == np.uint8 else picture.alpha >> 8
    image = to_pillow(Picture(pixels, None if alpha is None else alpha.astype(np.uint8)))
    height, width = result.pixels.shape[:2]
    shrink = min(1, PREVIEW / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    image = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    image.save(path, icc_profile=picture.metadata.get("icc_profile"))
    return path
