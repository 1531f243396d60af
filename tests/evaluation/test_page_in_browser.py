"""The page in a real browser: nothing comes from elsewhere, nothing sticks out, every picture shows."""

import html
import json
import re
import shutil
import subprocess

import pytest

from fingerprint_accel.evaluation.run import Extras, evaluate_command

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1100)  # a telephone and a desk
PROBE = """
<!doctype html><meta charset="utf-8"><body><pre id="found"></pre>FRAMES<script>
const found = {};
for (const frame of document.querySelectorAll("iframe")) frame.addEventListener("load", () => {
  const view = frame.contentDocument, images = [...view.images], root = view.documentElement;
  found[frame.width] = {
    images: images.length, shown: images.filter(image => image.complete && image.naturalWidth > 0).length,
    overflow: root.scrollWidth - root.clientWidth, sections: view.querySelectorAll("section").length,
    foreign: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:"))
  };
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_page_stands_alone_and_fits(ten_fingers, tiny_model, tmp_path):
    out = tmp_path / "evaluation"
    extras = Extras(against=tiny_model, by="left|right")
    evaluate_command(tiny_model, ten_fingers.folder, "all-pairs", out, 64, extras)
    page = (out / "report.html").read_text()
    frames = [f'<iframe width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>' for width in WIDTHS]
    (tmp_path / "probe.html").write_text(PROBE.replace("FRAMES", "".join(frames)))
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"),
    ]
    result = subprocess.run(
        [str(CHROMIUM), *options, (tmp_path / "probe.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', result.stdout)
    assert found, result.stderr[-2000:]
    measured = json.loads(html.unescape(found[1]))
    assert list(measured) == [str(width) for width in WIDTHS]
    for width, view in measured.items():
        assert view["foreign"] == [], width
        assert view["overflow"] <= 0, width
        assert view["images"] == view["shown"] == 5 + 16, width
        assert view["sections"] == 10, width
