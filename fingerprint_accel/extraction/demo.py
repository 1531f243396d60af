"""Web page of `fingerprint-accel demo`: compares two prints and searches a gallery.

Only browsers on this machine can open the page, and the page loads nothing from other machines.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from fingerprint_accel.data.walking import IMAGE_SUFFIXES
from fingerprint_accel.errors import UserError, require
from fingerprint_accel.extraction.comparison import compare_prints
from fingerprint_accel.extraction.demo_folder import dropped_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.minutiae_readout import minutiae_on_canvases
from fingerprint_accel.extraction.pair_picture import canvas_picture, pair_png
from fingerprint_accel.extraction.poses import UPRIGHT
from fingerprint_accel.extraction.search import columns, details, find, open_gallery

HOST = "127.0.0.1"
# With this policy the browser contacts only this server, even if the page refers to other hosts.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
STYLE = ".gradio-container {max-width: 1150px !important; margin: auto} footer {display: none !important}"


class Demo:
    """Implement the functions of the web page without gradio: draw a print, compare two prints, search a gallery.

    All methods raise a UserError for a file that is missing or shows no print.

    Args:
        extractor: model that embeds the prints.
    """

    def __init__(self, extractor: FingerprintExtractor) -> None:
        self.extractor = extractor

    def canvas(self, file: str | None, ppi: float) -> PIL.Image.Image | None:
        """Draw a print as the model receives it, with minutiae if the model predicts them.

        Args:
            file: image file; None if the user has not dropped a file.
            ppi: resolution of the image, pixels per inch.

        Returns:
            The drawn image; None if `file` is None.
        """
        if file is None:
            return None
        canvas = self.extractor.on_canvas(file, _resolution(ppi))
        minutiae = None
        if self.extractor.model.config.needs_minutia_maps:
            minutiae = minutiae_on_canvases(self.extractor, torch.from_numpy(canvas)[None])[0]
        return canvas_picture(canvas, minutiae)

    def compare(self, reference: str | None, probe: str | None, ppi: float, poses: bool) -> tuple[str, PIL.Image.Image]:
        """Compare two image files.

        Args:
            reference: image file; None if the user has not dropped a file.
            probe: image file to compare with the reference; None if the user has not dropped a file.
            ppi: resolution of both images, pixels per inch.
            poses: compare the prints in several rotations and shifts; otherwise compare one embedding of each print.

        Returns:
            Similarity and decisions as Markdown, and an image of the pair.
        """
        if reference is None or probe is None:
            raise UserError("drop two prints first")
        found = compare_prints(self.extractor, reference, probe, _resolution(ppi), None if poses else UPRIGHT)
        (_, value), *verdicts = found.rows()
        rows = "\n".join(f"| {rate.removeprefix('at FMR ')} | {verdict} |" for rate, verdict in verdicts)
        table = f"| false match rate | decision |\n|---|---|\n{rows}\n\n" if rows else ""
        png = pair_png(found, (Path(reference).name, Path(probe).name), self.extractor)
        return f"## similarity {value}\n\n{table}{found.basis}", PIL.Image.open(io.BytesIO(png))

    def search(self, folder: str, probe: str | None, ppi: float, top: float) -> tuple[list[list[Any]], str]:
        """Search a gallery for the prints that are most similar to an image file.

        Args:
            folder: gallery folder.
            probe: image file; None if the user has not dropped a file.
            ppi: resolution of the image, pixels per inch.
            top: number of prints to return.

        Returns:
            A list with one row per print found, best first, and a description of the search as Markdown. The columns
            are those of `search.columns`. The last column also contains person, finger and source where the gallery
            stores them.
        """
        if probe is None:
            raise UserError("drop a print first")
        gallery = open_gallery(Path(folder.strip()), self.extractor)
        rows, known, told = find(self.extractor, gallery, probe, _resolution(ppi), int(top))
        for row, texts in zip(rows, details(known)[1], strict=True):
            row[-1] = ", ".join([row[-1], *(text for text in texts if text != "-")])
        return rows, "\n\n".join(told)


def _resolution(ppi: float) -> int:
    """Round a resolution in pixels per inch to an integer; raise a UserError unless it is above 0."""
    require(bool(ppi) and ppi > 0, "the resolution must be above 0; enter the pixels per inch, for example 500")
    return round(ppi)


def import_gradio() -> Any:
    """Import gradio with its usage statistics and other requests to the internet disabled, and return the module.

    Raises:
        UserError: if gradio is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise UserError(f"the demo needs gradio ({error.name}): pip install 'fingerprint-accel[demo]'") from error


def build(gradio: Any, demo: Demo, gallery: str = "") -> Any:
    """Build the web page as a `gradio.Blocks`.

    Args:
        gradio: the gradio module.
        demo: functions that the buttons of the page call.
        gallery: initial text of the input field for the gallery folder.
    """
    drop = functools.partial(gradio.File, file_types=sorted(IMAGE_SUFFIXES), type="filepath", height=110)
    shown = functools.partial(gradio.Image, interactive=False, buttons=[], height=380)
    told = functools.partial(_told, gradio)
    extractor = demo.extractor
    config = extractor.model.config
    with gradio.Blocks(title="fingerprint_accel", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# Fingerprints\nDeepPrint {config.variant}, {config.embedding_dim} numbers"
            + (f", {extractor.origin}" if extractor.origin else "")
            + ". Drop images of one print each, ridges dark."
        )
        ppi = gradio.Number(500, label="resolution, pixels per inch", precision=0, elem_id="ppi")
        retyped = [ppi.blur, ppi.submit]  # `change` would fire at every digit
        with gradio.Tab("Compare two"):
            with gradio.Row():
                files, canvases = [], []
                for name in ("reference", "probe"):
                    with gradio.Column():
                        files.append(drop(label=name, elem_id=name))
                        canvases.append(shown(label=f"{name} on its canvas", elem_id=f"{name}-canvas"))
            poses = gradio.Checkbox(True, label=f"try several poses ({len(extractor.usual_poses)})", elem_id="poses")
            button = gradio.Button("Compare", variant="primary", elem_id="compare")
            verdict = gradio.Markdown(elem_id="verdict")
            pair = shown(show_label=False, elem_id="pair", height=None)
            for file, canvas in zip(files, canvases, strict=True):
                gradio.on([file.change, *retyped], told(demo.canvas), [file, ppi], canvas, api_name=False)
            button.click(told(demo.compare), [*files, ppi, poses], [verdict, pair], api_name="compare")
        with gradio.Tab("Search a gallery", elem_id="search-tab"):
            with gradio.Row():
                with gradio.Column():
                    probe = drop(label="print", elem_id="unknown")
                    folder = gradio.Textbox(gallery, label="gallery folder, created by `enroll`", elem_id="gallery")
                    top = gradio.Number(10, label="number of results", precision=0, minimum=1, elem_id="top")
                    look = gradio.Button("Search", variant="primary", elem_id="search")
                canvas = shown(label="print on its canvas", elem_id="unknown-canvas")
            searched = gradio.Markdown(elem_id="searched")
            hits = gradio.Dataframe(headers=columns(extractor), interactive=False, elem_id="hits")
            gradio.on([probe.change, *retyped], told(demo.canvas), [probe, ppi], canvas, api_name=False)
            look.click(told(demo.search), [folder, probe, ppi, top], [hits, searched], api_name="search")
    return page


def _told(gradio: Any, action: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the page shows the message of any `UserError` that the function raises.

    Args:
        gradio: the gradio module.
        action: function to wrap.
    """

    def act(*arguments: Any) -> Any:
        try:
            return action(*arguments)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return act


class StaysHere:
    """ASGI middleware that refuses requests from pages of other hosts, and adds a content security policy to responses.

    The `Host` and `Origin` headers of a request must name this machine. This prevents two attacks. In DNS rebinding,
    the host name of a foreign web page resolves to 127.0.0.1, but requests contain this host name as `Host`. Requests
    of a form on a foreign page contain the address of that page as `Origin`.

    Args:
        app: ASGI application to protect.
        port: port on which the application is served.
    """

    def __init__(self, app: Any, port: int) -> None:
        self.app, self.port = app, port
        names = [f"{host}:{port}" for host in (HOST, "localhost")] + ([HOST, "localhost"] if port == 80 else [])
        self.hosts = {name.encode() for name in names}
        self.origins = {b"http://" + host for host in self.hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        if scope["type"] in ("http", "websocket") and not self._from_here(scope["headers"]):
            await self._refuse(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive, send_with_policy)

    def _from_here(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Return whether the `Host` header, and the `Origin` header if there is one, name this machine and port."""
        hosts = [value.lower() for name, value in headers if name.lower() == b"host"]
        origins = {value.lower() for name, value in headers if name.lower() == b"origin"}
        return len(hosts) == 1 and hosts[0] in self.hosts and origins <= self.origins

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with status 403 and a hint how to open the page, or close a WebSocket connection."""
        kind = "http.response"
        if scope["type"] == "websocket":
            await receive()  # the connect message, which ASGI requires to be read before the answer
            kind = "websocket.http.response"
            if kind not in scope.get("extensions", {}):
                await send({"type": "websocket.close", "code": 1008})
                return
        port = self.port
        text = f"open http://{HOST}:{port}; from another machine, run ssh -L {port}:{HOST}:{port} first\n".encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
        await send({"type": f"{kind}.start", "status": 403, "headers": headers})
        await send({"type": f"{kind}.body", "body": text})


def serve(gradio: Any, page: Any, port: int) -> str:
    """Serve the page from a background thread, and return its URL.

    Args:
        gradio: the gradio module.
        page: the `gradio.Blocks` that `build` returned.
        port: port on 127.0.0.1; 0 for any free port.

    Raises:
        UserError: if the port cannot be used.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); choose another") from error
        port = free.getsockname()[1]  # for port 0 the system chooses one

    @contextlib.asynccontextmanager
    async def guarded(app: Any) -> AsyncIterator[None]:
        # The guard must wrap the middleware of gradio, whose CORS layer answers preflight requests to any host.
        app.middleware_stack = StaysHere(app.middleware_stack, port)
        yield

    # The default fonts of gradio are loaded from Google.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        theme=theme,
        css=STYLE,
        app_kwargs={"lifespan": guarded},
    )
    return f"http://{HOST}:{port}"


def demo_command(model: str, gallery: Path | None, port: int) -> None:
    """Open the model, build the page, and serve it until Ctrl-C or another signal ends the process.

    Args:
        model: name of a bundled model, or path of a model.
        gallery: gallery folder to show in the search tab; None for an empty field.
        port: port on 127.0.0.1; 0 for any free port.

    Raises:
        UserError: if gradio is not installed, the model is missing, the gallery was filled by another model, or the
            port cannot be used.
        SystemExit: after a signal; all image files that the user dropped have been deleted.
    """
    with dropped_prints() as dropped:
        os.environ["GRADIO_TEMP_DIR"] = str(dropped)  # gradio reads this variable at import and later
        gradio = import_gradio()
        extractor = open_extractor(model)
        if gallery is not None:
            open_gallery(gallery, extractor)
        page = build(gradio, Demo(extractor), "" if gallery is None else str(gallery))
        address = serve(gradio, page, port)
        print(f"{address}  (press Ctrl-C to stop)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)  # no upload may arrive after the folder is deleted
