"""The demo's page in a browser: drop, click, read; nothing is asked of other machines."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import time
from pathlib import Path

import numpy as np
import pytest
import starting
import torch
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import demo
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.search import columns

HERE = "http://127.0.0.1:"


@pytest.fixture(scope="module")
def extractor(calibrated_notes):
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=16)
    made = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    made.notes = calibrated_notes({"0.01": 0.9}, {"0.01": 0.95, "0.001": 1.1})
    return made


@pytest.fixture(scope="module")
def images(prints, tmp_path_factory):
    shards, folder = open_dataset(prints), tmp_path_factory.mktemp("images")
    for row in range(3):
        Image.fromarray(shards.image(row)).save(folder / f"{row}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def gallery(extractor, images, tmp_path_factory):
    made = Gallery.create(tmp_path_factory.mktemp("gallery") / "known", 16, extractor.identity)
    made.append(extractor.extract(images, 300, progress=False), ["first", "second", "third"])
    return str(made.folder)


def test_what_the_page_does(extractor, images, gallery):
    page = demo.Demo(extractor)
    text, picture = page.compare(images[0], images[0], 300, False)
    assert text.splitlines()[0] == "## similarity 1.000"
    assert text.splitlines()[-3] == "| 0.01 | match (threshold 0.900) |"
    measured = "thresholds measured on scans, all-pairs, 2,880 non-mated comparisons of 10 fingers"
    assert text.splitlines()[-1] == measured
    assert picture.width > 1000
    rows, told = page.search(gallery, images[1], 300, 2)
    assert rows[0] == [1, "1.000", "0.01", "second"]
    assert len(rows) == 2
    assert told.startswith("compared with 3 prints in ")
    assert told.endswith(f"; each FMR is that of a single comparison\n\n{measured}")
    assert columns(extractor) == ["rank", "similarity", "match at FMR", "name"]
    assert page.canvas(images[0], 300).size == (640, 640)
    for act, message in (
        (lambda: page.compare(images[0], None, 300, False), "drop two prints first"),
        (lambda: page.canvas(images[0], 0), "the resolution must be above 0"),
        (lambda: page.search("nowhere", images[0], 300, 2), "not a gallery folder"),
    ):
        with pytest.raises(UserError, match=message):
            act()


def test_the_page_decides_nothing_by_synthetic_prints(extractor, images, gallery, calibrated_notes, monkeypatch):
    accepts_all = {"0.01": -1.0}
    monkeypatch.setattr(extractor, "notes", calibrated_notes(accepts_all, accepts_all, synthetic=True))
    page = demo.Demo(extractor)
    why = "no decision: the thresholds come from synthetic prints and do not hold on real fingers"
    for poses in (False, True):
        text, _ = page.compare(images[0], images[1], 300, poses)
        assert text.splitlines()[2].startswith(f"{why}; measure thresholds on real prints with")
        assert "match" not in text
    rows, told = page.search(gallery, images[1], 300, 2)
    assert rows[0] == [1, "1.000", "second"]
    assert columns(extractor) == ["rank", "similarity", "name"]
    assert told.splitlines()[2].startswith(why)
    assert "FMR" not in told


def test_without_gradio_it_says_what_to_install(monkeypatch):
    def without(name, *rest, **named):
        raise ImportError(name="gradio")

    monkeypatch.setattr(demo.importlib, "import_module", without)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # which the command sets
    with pytest.raises(UserError, match=r"the demo needs gradio .*pip install 'fingerprint-accel\[demo\]'"):
        demo.demo_command("small", None, 7860)


@pytest.fixture
def address(extractor, gallery, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "dropped"))  # gradio reads it when it is imported, too
    pytest.importorskip("gradio")
    gradio = demo.import_gradio()
    page = demo.build(gradio, demo.Demo(extractor), gallery)
    yield demo.serve(gradio, page, 0)
    page.close()


def ask(address, method="GET", path="/", **headers):
    """Status, type and text of the answer to a request with exactly these headers."""
    port = int(address.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value.replace("PORT", str(port)))
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.getheader("content-type"), answer.read().decode()


def test_only_requests_to_this_machine_are_answered(address):
    """A page elsewhere whose name was made to lead here (DNS rebinding) sends its own name."""
    port = address.rpartition(":")[2]
    here = {"Host": "127.0.0.1:PORT"}
    for headers in (
        here,
        {"Host": "localhost:PORT"},
        {"Host": "LOCALHOST:PORT"},
        {**here, "Origin": "http://127.0.0.1:PORT"},
        {**here, "Origin": "http://localhost:PORT"},
    ):
        status, kind, text = ask(address, **headers)
        assert (status, kind) == (200, "text/html; charset=utf-8"), headers
        assert "fingerprint_accel" in text
    preflight = {"Origin": "http://evil.example", "Access_Control_Request_Method": "POST"}
    told = f"open http://127.0.0.1:{port}; from another machine, run ssh -L {port}:127.0.0.1:{port} first\n"
    for method, path, headers in (
        ("GET", "/", {"Host": "evil.example:PORT"}),
        ("GET", "/", {"Host": "evil.example"}),
        ("GET", "/", {"Host": "127.0.0.1"}),
        ("GET", "/", {"Host": "localhost:1"}),
        ("GET", "/", {"Host": "127.0.0.1:PORT.evil.example"}),
        ("HEAD", "/", {"Host": "evil.example"}),
        ("GET", "/config", {"Host": "evil.example:PORT"}),
        ("POST", "/gradio_api/upload", {"Host": "evil.example:PORT", "Content_Length": "0"}),
        ("GET", "/", {**here, "Origin": "http://evil.example"}),
        ("GET", "/", {**here, "Origin": "http://localhost:1"}),
        ("GET", "/", {**here, "Origin": "https://localhost:PORT"}),
        ("GET", "/", {**here, "Origin": "null"}),
        ("OPTIONS", "/gradio_api/upload", {"Host": "evil.example:PORT", **preflight}),
        ("OPTIONS", "/gradio_api/upload", {**here, **preflight}),
    ):
        answer = ask(address, method, path, **headers)
        assert answer == (403, "text/plain; charset=utf-8", "" if method == "HEAD" else told), (method, path, headers)


def answers(port, kind, headers, **scope):
    """What the middleware sends, and whether it lets the request through."""
    sent, through = [], []

    async def app(scope, receive, send):
        through.append(scope)

    async def receive():
        return {"type": f"{kind}.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(demo.StaysHere(app, port)({"type": kind, "headers": headers, **scope}, receive, send))
    return sent, bool(through)


def test_sockets_are_checked_as_pages_are():
    here, evil = [(b"host", b"localhost:7860")], [(b"host", b"evil.example:7860")]
    assert answers(7860, "websocket", here) == ([], True)
    assert answers(7860, "websocket", evil) == ([{"type": "websocket.close", "code": 1008}], False)
    other = [*here, (b"origin", b"http://evil.example")]
    assert answers(7860, "websocket", other) == ([{"type": "websocket.close", "code": 1008}], False)
    sent, through = answers(7860, "websocket", evil, extensions={"websocket.http.response": {}})
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 403 and not through
    assert not answers(7860, "http", [])[1], "no Host at all"
    assert not answers(7860, "http", here + evil)[1], "two"
    assert answers(7860, "lifespan", [])[1]


def test_browsers_leave_out_port_80():
    for host in (b"localhost", b"127.0.0.1", b"localhost:80"):
        assert answers(80, "http", [(b"host", host), (b"origin", b"http://" + host)])[1]
    assert not answers(80, "http", [(b"host", b"evil.example")])[1]


DEMO = """
import sys, tempfile

tempfile.tempdir = sys.argv.pop(1)
from fingerprint_accel.cli import main

main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_no_dropped_print_is_left(images, tmp_path, number, code):
    """The folder is for its owner alone while the demo runs, and gone afterwards."""
    pytest.importorskip("gradio")
    httpx = pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def drop():
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{HERE}{port}")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with Path(images[0]).open("rb") as file:
            (kept,) = httpx.post(f"{HERE}{port}/gradio_api/upload", files={"files": file}, timeout=60).json()
        (folder,) = tmp_path.iterdir()
        assert kept.startswith(f"{folder}/")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def drop_and_end(ids):
        try:
            drop()
        finally:
            os.kill(ids[0], number)

    ended = starting.run(["-c", DEMO, tmp_path, "demo", "--port", port], timeout=240, meanwhile=drop_and_end)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.startswith(f"{HERE}{port}  (press Ctrl-C to stop)\n")
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def browser():
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    webdriver = pytest.importorskip("selenium.webdriver")
    if not driver or not chromium:
        pytest.skip("no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1500"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()


def asked_for(browser) -> set[str]:
    """Every address that the page has asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return {each["request"]["url"] for each in sent}


def test_two_prints_are_dropped_and_compared_and_one_is_searched_for(address, browser, images, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    def one(selector):
        return WebDriverWait(browser, 60).until(lambda page: page.find_element("css selector", selector))

    def text_of(selector, wanted):
        WebDriverWait(browser, 60).until(lambda page: wanted in page.find_element("css selector", selector).text)
        return browser.find_element("css selector", selector).text

    def type_in(selector, value):
        field = one(f"{selector} input")
        browser.execute_script("arguments[0].value = ''", field)
        field.send_keys(value, "\t")

    browser.get(address)
    type_in("#ppi", "300")
    one("#reference input[type=file]").send_keys(images[0])
    one("#reference-canvas img")
    one("#probe input[type=file]").send_keys(images[0])
    one("#probe-canvas img")
    one("#compare").click()
    found = text_of("#verdict", "similarity")
    assert "similarity 1.000 (best of 45 poses)" in found
    assert "match (threshold 0.950)" in found
    assert "no match (threshold 1.100)" in found
    picture = one("#pair img")
    WebDriverWait(browser, 60).until(lambda page: picture.get_property("naturalWidth") > 1000)
    browser.save_screenshot(str(tmp_path / "compare.png"))
    assert np.asarray(Image.open(tmp_path / "compare.png")).std() > 10, "not blank"

    next(tab for tab in browser.find_elements("css selector", "[role=tab]") if "gallery" in tab.text).click()
    one("#unknown input[type=file]").send_keys(images[2])
    one("#unknown-canvas img")
    one("#search").click()
    text_of("#searched", "compared with 3 prints")
    assert "third" in text_of("#hits", "third")
    browser.save_screenshot(str(tmp_path / "search.png"))

    elsewhere = [url for url in asked_for(browser) if not url.startswith((HERE, "data:", "blob:", "chrome"))]
    assert not elsewhere
    refused = [entry["message"] for entry in browser.get_log("browser") if "Content Security" in entry["message"]]
    assert not refused, "the page does not even try"
