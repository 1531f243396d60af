"""Web page of `fingerprint-accel demo`: compares two prints and searches galleries.

Only the user who started the program can open the page, and the page loads nothing from other machines.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fingerprint_accel.data.walking import IMAGE_SUFFIXES
from fingerprint_accel.errors import require
from fingerprint_accel.extraction.comparison import compare_canvases
from fingerprint_accel.extraction.demo_server import MOST_BYTES, Action, PageServer, Upload
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.galleries import name_of
from fingerprint_accel.extraction.minutiae_readout import UNTRAINED, minutiae_on_canvases
from fingerprint_accel.extraction.pair_picture import canvas_picture, pair_png
from fingerprint_accel.extraction.poses import UPRIGHT
from fingerprint_accel.extraction.protection import read_key
from fingerprint_accel.extraction.search import columns, details, find, open_gallery
from fingerprint_accel.untrusted import Fields

PAGE = Path(__file__).with_name("demo_page.html")
MOST_PPI = 10_000
MOST_SHOWN = 1000  # number of results of a search


class Demo:
    """Actions of the page: draw a print, compare two prints, search a gallery.

    The methods take the values of the input fields and the prints that the user has dropped, and return what the page
    shows. They raise a UserError for wrong values, and for a file that shows no print.

    Args:
        extractor: model that embeds the prints.
        galleries: gallery folders and URLs of PostgreSQL databases that may be searched.
    """

    def __init__(self, extractor: FingerprintExtractor, galleries: Sequence[Path | str] = ()) -> None:
        self.extractor, self.galleries = extractor, list(galleries)

    @property
    def actions(self) -> dict[str, Action]:
        """Methods of this object by the name under which the page calls them."""
        found: dict[str, Action] = {"canvas": self.canvas, "compare": self.compare}
        return found | ({"search": self.search} if self.galleries else {})

    def page(self) -> str:
        """Return the HTML of the page."""
        config, extractor = self.extractor.model.config, self.extractor
        origin = f", {extractor.origin}" if extractor.origin else ""
        facts = {
            "model": f"DeepPrint {config.variant}, {config.embedding_dim} numbers{origin}",
            "poses": len(extractor.usual_poses),
            "galleries": [name_of(place) for place in self.galleries],
            "most_bytes": MOST_BYTES,
        }
        text = PAGE.read_text().replace("SUFFIXES", html.escape(",".join(sorted(IMAGE_SUFFIXES))))
        return text.replace("FACTS", json.dumps(facts).replace("<", "\\u003c"))

    def canvas(self, values: Fields, prints: Sequence[Upload]) -> dict[str, Any]:
        """Draw a print as the model receives it, with minutiae if the model predicts them."""
        require(len(prints) == 1, "drop a print first")
        canvas = self._on_canvas(prints[0], _ppi(values))
        minutiae = None
        if self.extractor.model.config.needs_minutia_maps and UNTRAINED not in self.extractor.notes:
            minutiae = minutiae_on_canvases(self.extractor, torch.from_numpy(canvas)[None])[0]
        buffer = io.BytesIO()
        canvas_picture(canvas, minutiae).save(buffer, format="PNG")
        return {"picture": _as_url(buffer.getvalue())}

    def compare(self, values: Fields, prints: Sequence[Upload]) -> dict[str, Any]:
        """Compare two prints in several poses, or in their original pose if `poses` is false."""
        require(len(prints) == 2, "drop two prints first")
        ppi, extractor = _ppi(values), self.extractor
        canvases = np.stack([self._on_canvas(each, ppi) for each in prints])
        found = compare_canvases(extractor, canvases, extractor.usual_poses if values.switch("poses") else UPRIGHT)
        (_, similarity), *decisions = found.rows()
        verdicts = [(rate.removeprefix("at FMR "), decision) for rate, decision in decisions]
        picture = _as_url(pair_png(found, (prints[0].name, prints[1].name), extractor))
        return {"similarity": similarity, "verdicts": verdicts, "basis": found.basis, "picture": picture}

    def search(self, values: Fields, prints: Sequence[Upload]) -> dict[str, Any]:
        """Search a gallery for the prints that are most similar to a print.

        Returns:
            Titles of the columns, rows of the table with the most similar print first, and lines of text about the
            search. The last column has the name of a print, and what else the gallery states about it.
        """
        require(len(prints) == 1, "drop a print first")
        place = self.galleries[values.integer("gallery", 0, len(self.galleries) - 1)]
        top, ppi = values.integer("results", 1, MOST_SHOWN), _ppi(values)
        gallery = open_gallery(place, self.extractor)
        rows, known, told = find(self.extractor, gallery, prints[0].data, ppi, top)
        for row, texts in zip(rows, details(known)[1], strict=True):
            row[-1] = ", ".join([row[-1], *(text for text in texts if text != "-")])
        return {"columns": columns(self.extractor), "rows": rows, "told": told}

    def _on_canvas(self, print_: Upload, ppi: int) -> np.ndarray:
        return self.extractor.on_canvas(print_.data, ppi, name=print_.name)


def _ppi(values: Fields) -> int:
    """Return the resolution that the user has entered, in pixels per inch."""
    return values.integer("resolution", 1, MOST_PPI)


def _as_url(png: bytes) -> str:
    """Return a data URL that contains a PNG file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def demo_command(model: str, galleries: Sequence[Path | str], port: int, protect: Path | None = None) -> None:
    """Open the model, and serve the page until Ctrl-C or another signal ends the process.

    Args:
        model: name of a bundled model, or path of a model.
        galleries: gallery folders and URLs of PostgreSQL databases that the page can search.
        port: port on 127.0.0.1; 0 for any free port.
        protect: file of the key that protects the templates of all galleries; None if they are not protected.

    Raises:
        UserError: if the model or the key is missing, a gallery was filled by another model or with another key, or the
            port cannot be used.
    """
    protection = read_key(protect) if protect else None
    extractor = open_extractor(model)
    extractor.protection = protection
    for gallery in galleries:
        open_gallery(gallery, extractor)
    demo = Demo(extractor, galleries)
    with PageServer(port, demo.page(), demo.actions) as server:
        print(f"{server.address}  (press Ctrl-C to stop)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
