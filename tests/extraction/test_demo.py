"""The demo's page in a browser: drop, click, read; nothing is asked of other machines."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import demo
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery

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
    assert told.endswith(f"; rates are those of one comparison\n\n{measured}")
    assert page.hit_columns == ["rank", "similarity", "match at FMR", "name"]
    assert page.canvas(images[0], 300).size == (640, 640)
    for act, message in (
        (lambda: page.compare(images[0], None, 300, False), "drop two prints first"),
        (lambda: page.canvas(images[0], 0), "give the resolution"),
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
        assert text.splitlines()[2].startswith(f"{why}; `fingerprint-accel calibrate MODEL DATASET`")
        assert "match" not in text
    rows, told = page.search(gallery, images[1], 300, 2)
    assert rows[0] == [1, "1.000", "second"]
    assert page.hit_columns == ["rank", "similarity", "name"]
    assert told.splitlines()[2].startswith(why)
    assert "rates" not in told


def test_without_gradio_it_says_what_to_install(monkeypatch):
    def without(name, *rest, **named):
        raise ImportError(name="gradio")

    monkeypatch.setattr(demo.importlib, "import_module", without)
    with pytest.raises(UserError, match=r"the demo needs gradio .*pip install 'fingerprint-accel\[demo\]'"):
        demo.demo_command("small", None, 7860)


@pytest.fixture
def address(extractor, gallery, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "dropped"))
    gradio = demo.import_gradio()
    page = demo.build(gradio, demo.Demo(extractor), gallery)
    yield demo.serve(gradio, page, 0)
    page.close()


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
