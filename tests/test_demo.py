"""``basicsr demo`` in a real browser, and its server's responses to requests that no browser sends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from struct import pack

import numpy as np
import pytest
import requests
from browser_cases import load
from PIL import Image, ImageCms
from tiny_network import save_tiny

from restormixer_arch import cli
from restormixer_arch.cli import demo
from restormixer_arch.inference.restore import restore

pytest.importorskip("gradio", reason="needs the extra 'demo'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECONDS = 15  # maximum time to wait for the page


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Run a server; yield its address and its folder with ``w.safetensors``. Stop it with SIGINT while it restores."""
    place = tmp_path_factory.mktemp("demo")
    (place / "temporary").mkdir()
    save_tiny(place / "w.safetensors")
    port = str(free_port())
    command = [sys.executable, "-m", "restormixer_arch.cli", "demo", "--weights", "w.safetensors", "--port", port]
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    variables = {**environment, **proxies, "TMPDIR": str(place / "temporary"), "OMP_NUM_THREADS": "1"}
    log = (place / "log").open("w")
    pipes = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
    with log, subprocess.Popen([*command, "--tile", "192"], cwd=place, env=variables, **pipes) as process:
        try:
            assert process.stdout.readline() == f"running on http://127.0.0.1:{port}; press Ctrl-C to stop\n"
            yield f"http://127.0.0.1:{port}", place
            before = (place / "log").read_text()
            start_long_one(f"http://127.0.0.1:{port}", place)
            assert len(list((place / "temporary").iterdir())) == 1
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
            assert (process.returncode, out) == (130, "")
            assert (place / "log").read_text() == before + "basicsr: stopped\n"
            assert list((place / "temporary").iterdir()) == []
        finally:
            process.kill()


def start_long_one(address, place):
    """Start restoring an image of many tiles."""
    Image.new("RGB", (2000, 2000)).save(place / "long.png")
    with (place / "long.png").open("rb") as file:
        [path] = requests.post(f"{address}/gradio_api/upload", files={"files": file}, timeout=10).json()
    sent = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "w"]}
    event = requests.post(f"{address}/gradio_api/call/restore", json=sent, timeout=10).json()["event_id"]
    with requests.get(f"{address}/gradio_api/call/restore/{event}", stream=True, timeout=10):
        time.sleep(1)


@pytest.fixture(scope="module")
def browser(server):
    """Start Chromium, which saves to ``<place>/downloads`` and can reach no host except 127.0.0.1."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra 'test'")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver here")
    address, place = server
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.add_experimental_option("prefs", {"download.default_directory": str(place / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(server, browser):
    """Load the page; at the end, check that the server logged nothing."""
    before = (server[1] / "log").read_text()
    load(browser, server[0])
    until(lambda: button(browser, "Restore"))
    browser.get_log("browser"), browser.get_log("performance")
    yield browser
    assert (server[1] / "log").read_text() == before


def until(condition):
    """Wait until ``condition()`` is true, and return its value."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)
    return value


def button(page, text):
    found = [one for one in page.find_elements("css selector", "button, a") if one.text == text]
    return found[0] if found else None


def send(page, path):
    until(lambda: page.find_elements("css selector", "input[type=file]"))[0].send_keys(str(path))


def restored_by(page, path):
    send(page, path)
    until(lambda: button(page, "Restore").is_enabled())
    button(page, "Restore").click()


def message(page):
    """Return the text of the notification on the page."""
    return until(lambda: " ".join(one.text for one in page.find_elements("css selector", "[data-testid=toast-body]")))


def severe(page):
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")]


def test_image_is_restored_compared_and_downloaded(server, page):
    address, place = server
    Image.fromarray(RGB).save(place / "my picture.tif", icc_profile=PROFILE)
    load(page, address)  # so that all requests are logged
    until(lambda: button(page, "Restore"))
    assert not button(page, "Restore").is_enabled()
    restored_by(page, place / "my picture.tif")
    until(lambda: len(page.find_elements("css selector", "img[src*='/file=']")) == 2)
    until(lambda: "60 x 40 pixels in" in page.find_element("tag name", "body").text)
    until(lambda: button(page, "Download").is_enabled())
    button(page, "Download").click()
    file = until(lambda: next(iter((place / "downloads").glob("*.png")), None))
    assert file.name == "my picture_restored.png"
    with Image.open(file) as image:
        assert image.format == "PNG" and image.info["icc_profile"] == PROFILE
        np.testing.assert_array_equal(np.asarray(image), restore(RGB, place / "w.safetensors", tile=192))
    assert severe(page) == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
    assert any("/gradio_api/upload" in url for url in sent)
    assert [url for url in sent if not url.startswith((address, "data:", "blob:"))] == []


def test_files_that_are_not_images_are_rejected_on_the_page(server, page):
    place = server[1]
    (place / "broken.png").write_bytes(b"no picture")
    restored_by(page, place / "broken.png")
    assert "broken.png: is not a readable image (JPEG, PNG, " in message(page)
    assert "/" not in message(page).replace("8-/16", "")  # no path on the server is revealed
    load(page, server[0])
    until(lambda: button(page, "Restore"))
    (place / "notes.txt").write_text("text")
    send(page, place / "notes.txt")
    assert "Invalid file type" in message(page)


def bomb(width, height):
    """Return a PNG of a few bytes with this size in its header."""

    def chunk(kind, content):
        return pack(">I", len(content)) + kind + content + pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_too_large_images_are_rejected_on_the_page(server, page):
    place = server[1]
    (place / "bomb.png").write_bytes(bomb(10_000, 6_000))
    restored_by(page, place / "bomb.png")
    assert "bomb.png: has 10000 x 6000 pixels, the limit is 50 megapixels" in message(page)
    load(page, server[0])
    until(lambda: button(page, "Restore"))
    with (place / "long.png").open("wb") as file:
        file.truncate(100 * 2**20 + 1)
    send(page, place / "long.png")
    assert "exceed the maximum allowed size of 100.0 Mb" in message(page)


def ask(address, data=None):
    """Return the status and text of the response."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data and json.dumps(data).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "//etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "{place}/w.safetensors"]
)
@pytest.mark.parametrize("route", ["gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "theme/"])
def test_server_does_not_serve_local_files(server, route, path):
    address, place = server
    status, text = ask(f"{address}/{route}{path.format(place=place)}")
    assert status in (403, 404, 405) and "root:" not in text and "encoder" not in text


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "w.safetensors", "http://127.0.0.1:9/x.png", "HTTP://example.org/x.png"]
)
def test_only_uploaded_files_are_restored(server, path):
    sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
    status, text = ask(f"{server[0]}/gradio_api/call/restore", {"data": [sent, "w"]})
    assert status == 200
    status, text = ask(f"{server[0]}/gradio_api/call/restore/{json.loads(text)['event_id']}")
    assert status == 200 and text.startswith("event: error")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://203.0.113.5"}, 403),  # an IP address is another site too
        ({"Host": "localhost:80", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:x"}, 403),
        ({"Host": "localhost", "Origin": "https://localhost"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "localhost:80", "Origin": "http://localhost"}, 200),
        ({"Host": "[::1]:80"}, 200),
    ],
)
def test_requests_with_another_host_or_origin_are_rejected(server, headers, status):
    assert requests.get(server[0], headers=headers, timeout=SECONDS).status_code == status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--task: no weights for 'derain'"),
        (["--weights", "x.pth"], "x.pth: does not exist."),
        (
            ["--weights", "w.safetensors", "--port", "{used}"],
            "--host, --port: 127.0.0.1:{used} is not available (Address",
        ),
        (["--weights", "w.safetensors", "--host", "no.such.host.invalid"], "is not available ("),
        (["--task", "auto"], "--task: 'auto' is for 'basicsr restore'; expected one of mixed"),
        (["--task", ""], "argument --task: expected a task such as derain, got an empty string"),
        (["--host", ""], "argument --host: expected a name, got an empty string"),
        (["--port", "70000"], "expected a port from 1 to 65535, got '70000'"),
        (
            ["--tile", "64", "--overlap", "64", "--weights", "w.safetensors"],
            "tile: 64 is too small for an overlap of 64",
        ),
    ],
)
def test_invalid_arguments(folder, capsys, arguments, message, monkeypatch):
    monkeypatch.setattr("restormixer_arch.inference.installed.WEIGHTS_FOLDER", folder)
    save_tiny(folder / "w.safetensors")
    save_tiny(folder / "restormixer_s_mixed.safetensors")
    with socket.create_server(("127.0.0.1", 0)) as used:
        number = used.getsockname()[1]
        assert cli.main(["demo", *(text.format(used=number) for text in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message.format(used=number) in err


def test_help_lists_the_selectable_tasks():
    [help] = [action.help for action in demo.parser()._actions if action.dest == "task"]
    assert help.startswith("installed weights: derain (default), desnow") and "auto" not in help


def test_page_accepts_all_image_file_types(server):
    components = requests.get(f"{server[0]}/config", timeout=SECONDS).json()["components"]
    [upload] = [one["props"] for one in components if one["type"] == "file"]
    assert {".jpg", ".jfif", ".avif", ".heic", ".heif", ".hif", ".jpe", ".tiff"} <= set(upload["file_types"])


def test_missing_gradio_is_reported(folder, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "basicsr: error: basicsr demo: needs gradio, which is not installed; pip install 'restormixer[demo]'\n"
    )
