"""The demo's page: what its actions answer, to whom, and how it looks in a browser."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import threading
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
from fingerprint_accel.extraction import demo_server
from fingerprint_accel.extraction.demo import Demo, demo_command
from fingerprint_accel.extraction.demo_server import PageServer, Upload
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.minutiae_readout import UNTRAINED
from fingerprint_accel.extraction.protection import read_key
from fingerprint_accel.untrusted import Fields

NAMES = ["first", "<img src=x onerror=document.title='hacked'>", "third"]
HERE = "http://127.0.0.1:"
PNG = "data:image/png;base64,iVBORw0KGgo"


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
        Image.fromarray(shards.image(row)).save(folder / f"{row}$.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def gallery(extractor, images, tmp_path_factory):
    made = Gallery.create(tmp_path_factory.mktemp("gallery") / "known", 16, extractor.identity)
    made.append(extractor.extract(images, 300, progress=False), NAMES)
    return made.folder


@pytest.fixture(scope="module")
def page(extractor, gallery):
    return Demo(extractor, [gallery])


def values(**given):
    return Fields({"resolution": 300, **given}, "page", "enter another value")


def uploads(*paths):
    return [Upload(path.name, path.read_bytes()) for path in paths]


def test_what_the_page_does(page, images):
    found = page.compare(values(poses=False), uploads(images[0], images[0]))
    assert found["similarity"] == "1.000"
    assert found["verdicts"] == [("0.01", "match (threshold 0.900)")]
    measured = "thresholds measured on scans, all-pairs, 2,880 non-mated comparisons of 10 fingers"
    assert found["basis"] == measured
    assert found["picture"].startswith(PNG)
    found = page.search(values(gallery=0, results=2), uploads(images[1]))
    assert found["columns"] == ["rank", "similarity", "match at FMR", "name"]
    assert found["rows"][0] == [1, "1.000", "0.01", NAMES[1]]
    assert len(found["rows"]) == 2
    assert found["told"][0].startswith("compared with 3 prints in ")
    assert found["told"][0].endswith("; each FMR is that of a single comparison")
    assert found["told"][1] == measured
    assert page.canvas(values(), uploads(images[0]))["picture"].startswith(PNG)


def test_a_model_whose_minutia_branch_was_not_trained_draws_prints_too(extractor, page, images, monkeypatch):
    monkeypatch.setitem(extractor.notes, UNTRAINED, True)
    assert page.canvas(values(), uploads(images[0]))["picture"].startswith(PNG)


@pytest.mark.parametrize(
    ("action", "given", "count", "message"),
    [
        ("compare", {"poses": False}, 1, "drop two prints first"),
        ("canvas", {}, 0, "drop a print first"),
        ("canvas", {"resolution": 0}, 1, "page: resolution must be an integer from 1 to 10000, not 0"),
        ("search", {"gallery": 0, "results": 10}, 0, "drop a print first"),
        ("search", {"gallery": 1, "results": 10}, 1, "page: gallery must be an integer from 0 to 0, not 1"),
        ("search", {"gallery": "/", "results": 10}, 1, 'page: gallery must be an integer from 0 to 0, not "/"'),
        ("search", {"gallery": 0, "results": 0}, 1, "page: results must be an integer from 1 to 1000, not 0"),
    ],
)
def test_wrong_input_is_named(page, images, action, given, count, message):
    with pytest.raises(UserError, match=message):
        page.actions[action](values(**given), uploads(*images[:count]))


def test_a_file_that_is_no_image_is_named(page):
    with pytest.raises(UserError, match=r"notes.txt: not an image; give an image of one print"):
        page.canvas(values(), [Upload("notes.txt", b"text")])


def test_the_page_decides_nothing_by_synthetic_prints(extractor, page, images, calibrated_notes, monkeypatch):
    accepts_all = {"0.01": -1.0}
    monkeypatch.setattr(extractor, "notes", calibrated_notes(accepts_all, accepts_all, synthetic=True))
    why = "no decision: the thresholds come from synthetic prints and do not hold on real fingers"
    for poses in (False, True):
        found = page.compare(values(poses=poses), uploads(*images[:2]))
        assert found["verdicts"] == []
        assert found["basis"].startswith(f"{why}; measure thresholds on real prints with")
    found = page.search(values(gallery=0, results=2), uploads(images[1]))
    assert found["rows"][0] == [1, "1.000", NAMES[1]]
    assert found["columns"] == ["rank", "similarity", "name"]
    assert found["told"][1].startswith(why)
    assert "FMR" not in found["told"][0]


@contextlib.contextmanager
def serving(page):
    """Serve a page from a thread."""
    with PageServer(0, page.page(), page.actions) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(page):
    with serving(page) as server:
        yield server


def ask(server, path, method="GET", body=None, **headers):
    """Status, headers and text of the answer to a request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest(method, path.replace("TOKEN", server.token), skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), str(value).replace("PORT", str(server.server_port)))
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


TYPE = {"Content_Type": "application/octet-stream"}
SENT = {"Host": "127.0.0.1:PORT", "Origin": f"{HERE}PORT", **TYPE}


def act(server, action, given, *prints):
    """Status and answer of an action, as the script of the page asks for it."""
    listed = [{"name": each.name, "size": len(each.data)} for each in prints]
    body = json.dumps({"resolution": 300, **given, "prints": listed}).encode() + b"\n"
    body += b"".join(each.data for each in prints)
    status, _, text = ask(server, f"/TOKEN/{action}", "POST", body, Content_Length=len(body), **SENT)
    return status, json.loads(text) if text.startswith("{") else text


def test_the_address_has_a_new_token_each_time(page):
    with serving(page) as first, serving(page) as second:
        assert first.address == f"{HERE}{first.server_port}/{first.token}/"
        assert len(first.token) >= 32 and first.token != second.token
        assert ask(second, f"/{first.token}/", Host="127.0.0.1:PORT")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "127.0.0.1:PORT"},
        {"Host": "localhost:PORT"},
        {"Host": "LOCALHOST:PORT"},
        {"Host": "127.0.0.1:PORT", "Origin": f"{HERE}PORT"},
        {"Host": "localhost:PORT", "Origin": "http://localhost:PORT"},
    ],
)
def test_who_knows_the_address_sees_the_page(server, headers):
    status, kinds, text = ask(server, "/TOKEN/", **headers)
    assert (status, kinds["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "Drop images of one print each" in text


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        # without the token
        *(("GET", path, {"Host": "127.0.0.1:PORT"}) for path in ("/", "", "/TOKEN", "/TOKENx/", "/x/TOKEN/")),
        ("GET", "/?token=TOKEN", {"Host": "127.0.0.1:PORT"}),
        ("GET", "/%ff/", {"Host": "127.0.0.1:PORT"}),
        ("GET", "/favicon.ico", {"Host": "127.0.0.1:PORT"}),
        ("GET", "/gradio_api/file=/etc/passwd", {"Host": "127.0.0.1:PORT"}),
        ("POST", "/compare", SENT),
        ("HEAD", "/", {"Host": "127.0.0.1:PORT"}),
        # DNS rebinding: the name of another page leads here
        ("GET", "/TOKEN/", {"Host": "evil.example:PORT"}),
        ("GET", "/TOKEN/", {"Host": "evil.example"}),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1"}),
        ("GET", "/TOKEN/", {"Host": "localhost:1"}),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1:PORT.evil.example"}),
        ("GET", "/TOKEN/", {"host": "127.0.0.1:PORT", "Host": "evil.example:PORT"}),
        ("GET", "/TOKEN/", {}),
        # another page asks
        ("GET", "/TOKEN/", {"Host": "127.0.0.1:PORT", "Origin": "http://evil.example"}),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1:PORT", "Origin": "http://localhost:1"}),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1:PORT", "Origin": "https://localhost:PORT"}),
        ("GET", "/TOKEN/", {"Host": "127.0.0.1:PORT", "Origin": "null"}),
        ("POST", "/TOKEN/compare", {**SENT, "Origin": "http://evil.example"}),
        ("OPTIONS", "/TOKEN/compare", {"Host": "127.0.0.1:PORT", "Origin": "http://evil.example"}),
    ],
)
def test_all_others_are_refused_in_the_same_way(server, method, path, headers):
    status, kinds, text = ask(server, path, method, **headers)
    port = server.server_port
    told = "open the whole address that the demo has printed; from another machine, run "
    assert (status, kinds["Content-Type"]) == (403, "text/plain; charset=utf-8")
    assert text == ("" if method == "HEAD" else f"{told}ssh -L {port}:127.0.0.1:{port} first\n")
    assert server.token not in text and "Access-Control-Allow-Origin" not in kinds


def test_there_is_nothing_else_behind_the_token(server):
    traversal = ("../../etc/passwd", "..%2f..%2fetc/passwd", "//etc/passwd", "file=/etc/passwd", "compare/", "config")
    for path in traversal:
        assert ask(server, f"/TOKEN/{path}", Host="127.0.0.1:PORT")[0] == 404, path
    for method, path in (("GET", "compare"), ("POST", ""), ("PUT", "canvas"), ("OPTIONS", "canvas"), ("DELETE", "")):
        assert ask(server, f"/TOKEN/{path}", method, **SENT)[0] == 405, (method, path)
    assert ask(server, "/TOKEN/canvas", "POST", **{**SENT, "Content_Type": "text/plain"})[0] == 415


def test_answers_are_not_kept_framed_or_guessed(server):
    for path, status in (("/TOKEN/", 200), ("/", 403), ("/TOKEN/x", 404)):
        found, headers, text = ask(server, path, Host="127.0.0.1:PORT")
        assert found == status
        wanted = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
        wanted |= {"X-Frame-Options": "DENY", "Server": "fingerprint-accel "}
        assert wanted.items() <= dict(headers).items()
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert "unsafe" not in str(policy)
        nonce = policy["script-src"].removeprefix("'nonce-").removesuffix("'")
        assert len(nonce) >= 20 and (status != 200 or text.count(f'nonce="{nonce}"') == 3)


def test_actions_answer_over_http(server, images):
    assert act(server, "canvas", {}, *uploads(images[0]))[1]["picture"].startswith(PNG)
    status, found = act(server, "search", {"gallery": 0, "results": 1}, *uploads(images[2]))
    assert (status, found["rows"]) == (200, [[1, "1.000", "0.01", "third"]])
    assert act(server, "canvas", {"resolution": -1}, *uploads(images[0])) == (
        400,
        {"error": "page: resolution must be an integer from 1 to 10000, not -1; enter another value"},
    )


def test_only_galleries_that_were_named_at_the_start_are_searched(server, extractor, images, gallery):
    for given in (str(gallery), "..", -1, 1, None, [0], 0.0):
        status, found = act(server, "search", {"gallery": given, "results": 1}, *uploads(images[0]))
        assert (status, "gallery must be an integer from 0 to 0" in found["error"]) == (400, True), given
    with serving(Demo(extractor)) as without:
        assert act(without, "search", {"gallery": 0, "results": 1}, *uploads(images[0]))[0] == 404


def test_uploads_are_limited_before_they_are_read(server, monkeypatch):
    most = demo_server.MOST_PRINTS * demo_server.MOST_BYTES + demo_server.MOST_HEAD
    for length, status in ((most + 1, 413), ("9" * 5000, 413), ("-1", 411), ("1e3", 411), ("", 411), ("\xb2", 411)):
        assert ask(server, "/TOKEN/canvas", "POST", Content_Length=length, **SENT)[0] == status, length
    assert ask(server, "/TOKEN/canvas", "POST", **SENT)[0] == 411
    monkeypatch.setattr(demo_server, "MOST_BYTES", 10)
    status, found = act(server, "canvas", {}, Upload("a.png", b"x" * 11))
    assert (status, found["error"]) == (400, "print: size must be an integer from 0 to 10, not 11; reload the page")
    assert act(server, "canvas", {}, *[Upload("a.png", b"x")] * 3) == (400, "the request is damaged\n")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"{",
        b"[]\n",
        b"[" * 9000,
        b'{"prints": 1}\nx',
        b'{"prints": [1]}\n',
        b'{"prints": [{"size": 9}]}\nx',
    ],
)
def test_damaged_requests_are_refused(server, body):
    status, _, text = ask(server, "/TOKEN/canvas", "POST", body, Content_Length=len(body), **SENT)
    assert status == 400
    assert text == "the request is damaged\n" or "error" in json.loads(text)


def test_a_port_in_use_is_named(server, extractor):
    page = Demo(extractor)
    with pytest.raises(UserError, match=f"--port {server.server_port}: cannot be used .*; choose another"):
        PageServer(server.server_port, page.page(), page.actions)


def test_browsers_leave_out_port_80(monkeypatch):
    monkeypatch.setattr(demo_server.ThreadingHTTPServer, "__init__", lambda self, *_: setattr(self, "server_port", 80))
    server = PageServer(80, "", {})
    assert server.hosts == {"127.0.0.1:80", "localhost:80", "127.0.0.1", "localhost"}
    assert server.origins == {f"http://{host}" for host in server.hosts}


def test_a_gallery_of_another_model_is_refused_at_the_start(gallery):
    with pytest.raises(UserError, match="filled by another model"):
        demo_command("small", [gallery], 0)


def test_a_protected_gallery_is_searched_with_its_key_only(extractor, images, tmp_path, monkeypatch):
    key = tmp_path / "key"
    key.write_text("12" * 32)
    key.chmod(0o600)
    extractor.save_pretrained(tmp_path / "model")
    opened = FingerprintExtractor.from_pretrained(tmp_path / "model")
    opened.protection = read_key(key)
    made = Gallery.create(tmp_path / "known", 16, opened.identity)
    made.append(opened.extract(images, 300, progress=False), NAMES)
    with pytest.raises(UserError, match=r"protected by the key .*; give the file of this key to --protect"):
        demo_command(str(tmp_path / "model"), [made.folder], 0)
    found = []

    def served(server):
        found.append(server.actions["search"](values(gallery=0, results=1), uploads(images[1])))
        raise KeyboardInterrupt

    monkeypatch.setattr(PageServer, "serve_forever", served)
    demo_command(str(tmp_path / "model"), [made.folder], 0, key)
    assert found[0]["rows"][0][:2] == [1, "1.000"]


DEMO = """
import os, sys, tempfile

os.chdir(sys.argv.pop(1))
tempfile.tempdir = "."
from fingerprint_accel.cli import main

main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0), (signal.SIGKILL, -9)]
)
def test_no_dropped_print_is_on_the_disk_or_left_by_a_killed_demo(images, tmp_path, number, code):
    seen = []

    class Address:
        """What `act` needs to know of a server in another process."""

        def __init__(self, text):
            self.server_port, self.token = int(text.split("/")[2].split(":")[1]), text.split("/")[3]

    def drop_and_end(ids):
        process, text = Path(f"/proc/{ids[0]}/fd"), ""
        deadline = time.monotonic() + 120
        try:
            while "(press Ctrl-C" not in text and time.monotonic() < deadline:
                time.sleep(0.05)
                if (process / "1").is_file():  # at first it is a pipe of the process that was forked
                    text = (process / "1").read_text()
            seen.append(text)
            seen.append(act(Address(text), "canvas", {}, *uploads(images[0])))
            seen.append(list(tmp_path.iterdir()))
            seen.append({path.readlink().name for path in process.iterdir() if path.is_file()})
        finally:
            os.kill(ids[0], number)

    ended = starting.run(["-c", DEMO, tmp_path, "demo", "--port", 0], timeout=240, meanwhile=drop_and_end)
    assert (ended.returncode, ended.stderr) == (code, "")
    printed, (status, answer), written, opened = seen
    assert ended.stdout == printed and printed.endswith("/  (press Ctrl-C to stop)\n")
    assert status == 200, answer
    assert answer["picture"].startswith(PNG)
    assert written == list(tmp_path.iterdir()) == []
    assert opened == {"out", "err"}


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


def test_two_prints_are_dropped_and_compared_and_one_is_searched_for(server, browser, images, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    def until(found):
        return WebDriverWait(browser, 60).until(found)

    def one(selector):
        return browser.find_element("css selector", selector)

    def text_of(selector, wanted):
        until(lambda _: wanted in one(selector).text)
        return one(selector).text

    def width_of(selector):
        until(lambda _: one(selector).is_displayed() and one(selector).get_property("naturalWidth") > 0)
        return one(selector).get_property("naturalWidth")

    browser.get(server.address)
    assert "DeepPrint TexMinu, 16 numbers" in one("h1 + p").text
    one("#compare").click()
    text_of("#error", "drop two prints first")
    one("#ppi").clear()
    one("#ppi").send_keys("300", "\t")
    for name in ("reference", "probe"):
        one(f"#{name} input").send_keys(str(images[0]))
        assert width_of(f"#{name}-canvas") == 640
    one("#compare").click()
    found = text_of("#verdict", "similarity")
    assert not one("#error").is_displayed()
    assert "similarity 1.000 (best of 45 poses)" in found
    assert "0.01 match (threshold 0.950)" in found
    assert "0.001 no match (threshold 1.100)" in found
    assert width_of("#pair") > 1000
    browser.save_screenshot(str(tmp_path / "compare.png"))
    assert np.asarray(Image.open(tmp_path / "compare.png")).std() > 10, "not blank"

    one("#search-tab").click()
    assert not one("#compare-panel").is_displayed()
    one("#unknown input").send_keys(str(images[1]))
    width_of("#unknown-canvas")
    one("#search").click()
    text_of("#searched", "compared with 3 prints")
    assert NAMES[1] in one("#hits").text, "the name of a print is text and not HTML"
    assert browser.title == "fingerprint_accel"
    one("#unknown input").send_keys(str(Path(__file__)))
    text_of("#error", "test_demo.py: not an image; give an image of one print")
    assert not one("#unknown-canvas").is_displayed()
    browser.save_screenshot(str(tmp_path / "search.png"))

    browser.refresh()
    assert one("#compare").is_displayed(), "the page can be loaded again"
    elsewhere = {url for url in asked_for(browser) if not url.startswith((server.address, "data:", "chrome"))}
    assert not elsewhere
    wrong = [entry["message"] for entry in browser.get_log("browser") if "400 (Bad Request)" not in entry["message"]]
    assert not wrong
