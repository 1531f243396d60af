import ast
import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.cli.models import export
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction import export as export_module
from fingerprint_accel.extraction import int8_check
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.extraction.centring import as_text, mean_template
from fingerprint_accel.extraction.export import KIND
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.outputs import check_file

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TELEMETRY = "ORT_DISABLE_TELEMETRY"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_only.py"


@pytest.fixture(scope="module")
def canvases(prints):
    """(12, 320, 320) uint8 prints."""
    shards = open_dataset(prints)
    return np.stack([shards.image(row) for row in range(12)])


@pytest.fixture(scope="module")
def exported(canvases, spread_out, tmp_path_factory):
    """An extractor that enhances, aligns and tells apart prints, the folder of its exports, and what was printed.

    It has all parts that extractors can have, averages canvases down, and shrinks pictures of wide ridges once more;
    exporting takes half a minute."""
    torch.manual_seed(0)
    model = ModelConfig(variant="LocTexMinu", trunk="compact", width=8, embedding_dim=32)
    extractor = FingerprintExtractor(model, PreprocessConfig(crop=256, size=144, enhance=True), ppi=300, canvas=320)
    if extractor.alignment_network is not None:
        torch.nn.init.normal_(extractor.alignment_network.head[-1].weight, std=0.5)  # at first it turns nothing
    spread_out(extractor, canvases)  # also what was embedded before must not matter to the export
    center = mean_template(extractor.extract(list(canvases), 300, progress=False), cells=0)
    extractor.notes = {"calibration": Calibration("prints", True, "all-pairs", center=as_text(center)).values()}
    folder = tmp_path_factory.mktemp("export")
    extractor.save_pretrained(folder / "model")
    onnx = folder / "model.onnx" if all(map(importlib.util.find_spec, ONNX_PACKAGES)) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        export(str(folder / "model"), onnx, torch_file=folder / "model.pt2")
    return extractor, folder, printed.getvalue()


@pytest.fixture(scope="module")
def session(exported):
    runtime = pytest.importorskip("onnxruntime")
    if not (exported[1] / "model.onnx").exists():
        pytest.skip("writing ONNX needs onnx and onnxscript")
    return runtime.InferenceSession(exported[1] / "model.onnx")


def test_the_network_tells_the_prints_of_these_tests_apart(exported, canvases):
    extractor = exported[0]
    embeddings = extractor(torch.from_numpy(canvases)).numpy()
    assert (embeddings @ embeddings.T)[np.triu_indices(12, 1)].min() < 0
    alignment = extractor.alignment(torch.from_numpy(canvases))
    assert alignment is None or alignment.shift.std() > 1


def test_the_files_may_be_replaced_by_another_export(exported):
    for file in exported[1].glob("model.*"):
        check_file(file, KIND)
        with pytest.raises(UserError, match="was not written by this command"):
            check_file(file, "picture")


def test_the_files_are_for_their_owner_alone(exported):
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in exported[1].glob("model.*")}
    assert modes == dict.fromkeys(modes, "0o600")
    assert "model.pt2" in modes


def test_the_command_says_how_the_files_differ(exported):
    lines = exported[2].splitlines()
    assert [line.split(":")[0].rpartition(".")[2] for line in lines][-1] == "pt2"
    for line in lines:
        assert float(re.search(r"differs from PyTorch by at most (\S+);", line)[1]) < 1e-4
        assert float(re.search(r"; (\S+) ms per print", line)[1]) > 0


@pytest.mark.parametrize("count", [1, 5, 12])
def test_onnx_gives_the_same_embeddings_for_any_number_of_prints(exported, session, canvases, count):
    (found,) = session.run(["embeddings"], {"images": canvases[:count]})
    np.testing.assert_allclose(found, exported[0](torch.from_numpy(canvases[:count])), atol=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_torch_opens_its_export_without_the_package(exported, canvases, count):
    extractor, folder, _ = exported
    images = torch.from_numpy(canvases[:count])
    module = torch.export.load(folder / "model.pt2").module()
    torch.testing.assert_close(module(images), extractor(images), atol=1e-4, rtol=0)


def test_the_example_needs_nothing_else_and_finds_the_same(exported, session, canvases, tmp_path):
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 41
    modules = {alias.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert modules == {"os", "sys", "numpy", "onnxruntime", "PIL"}
    paths = [tmp_path / f"{row}.png" for row in range(4)]
    for path, image in zip(paths, canvases, strict=False):
        Image.fromarray(image).save(path)
    extractor, folder, _ = exported
    wanted = extractor(torch.from_numpy(canvases[:4])).numpy()
    found = runpy.run_path(str(EXAMPLE))["embed"](folder / "model.onnx", paths, 300)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    command = [sys.executable, str(EXAMPLE), str(folder / "model.onnx"), str(paths[0]), str(paths[1]), "300"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed.split()[-1]) == pytest.approx(wanted[0] @ wanted[1], abs=1e-3)


def test_onnxruntime_sends_no_usage_data(exported, session, canvases, tmp_path, monkeypatch):
    """Since version 1.29 it does, from native code, which a guard in Python does not see."""
    assert os.environ.get(TELEMETRY) == "1", "the export has set it"
    monkeypatch.delenv(TELEMETRY)
    imported = []

    def note(name):
        imported.append((name, os.environ.get(TELEMETRY)))
        raise ImportError(name=name)

    monkeypatch.setattr(export_module.importlib, "import_module", note)
    with pytest.raises(UserError, match="onnxruntime is not installed"):
        export_module.save_onnx(exported[0], None, tmp_path / "model.onnx")
    assert imported == [("onnxruntime", "1")]


def test_the_example_collects_no_usage_data(exported, session, canvases, tmp_path):
    """onnxruntime keeps it in the home folder until it has sent it."""
    (tmp_path / "home").mkdir()
    Image.fromarray(canvases[0]).save(tmp_path / "a.png")
    words = [sys.executable, EXAMPLE, exported[1] / "model.onnx", tmp_path / "a.png", tmp_path / "a.png", "300"]
    left_out = (TELEMETRY, "CI", "XDG_CACHE_HOME")  # onnxruntime sends nothing from CI
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    subprocess.run(words, check=True, env={**environment, "HOME": str(tmp_path / "home")}, stdout=subprocess.DEVNULL)
    assert not list((tmp_path / "home").rglob("*onnxruntime*"))


def test_nothing_to_write_is_an_error():
    with pytest.raises(UserError, match="no output given"):
        export("small")


def test_two_outputs_need_two_names(tmp_path):
    with pytest.raises(UserError, match="two outputs have the same name"):
        export("small", tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """An extractor, the folder of its 8-bit model, and what was printed."""
    if not all(map(importlib.util.find_spec, ONNX_PACKAGES)):
        pytest.skip("writing ONNX needs onnx, onnxscript and onnxruntime")
    torch.manual_seed(0)
    model = ModelConfig(variant="LocTex", trunk="compact", width=8, embedding_dim=32)
    extractor = FingerprintExtractor(model, PreprocessConfig(crop=256, size=160), ppi=300, canvas=320)
    folder = tmp_path_factory.mktemp("int8")
    extractor.save_pretrained(folder / "model")
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "CALIBRATION", (2, 4))
        patch.setattr(int8_check, "FINGERS", 2)
        export(str(folder / "model"), int8=folder / "int8.onnx")
    return extractor, folder, printed.getvalue()


def test_convolutions_have_8_bits_and_the_alignment_network_has_none(quantised):
    graph = pytest.importorskip("onnx").load(quantised[1] / "int8.onnx").graph
    source = {output: node.input[0] for node in graph.node for output in node.output if node.input}
    weights = {each.name: each for each in graph.initializer}
    names = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    stored = [weights[name] if name in weights else weights[source[name]] for name in names]
    eight = [each for each in stored if each.data_type == 3]  # int8
    full = [each for each in stored if each.data_type == 1]  # float32
    assert len(eight) == 13, "all of the stem but the first, ten of four residual blocks"
    assert not any("alignment" in each.name for each in eight)
    trunk = sorted(list(each.dims[1:]) for each in full if "alignment" not in each.name)
    assert trunk == [[1, 5, 5]], "the first"
    assert sum("alignment" in each.name for each in full) == 11


def test_embeddings_of_8_bits_are_close_to_those_of_the_model(quantised, canvases):
    runtime = pytest.importorskip("onnxruntime")
    found = runtime.InferenceSession(quantised[1] / "int8.onnx").run(None, {"images": canvases[:5]})[0]
    wanted = quantised[0](torch.from_numpy(canvases[:5])).numpy()
    assert (found * wanted).sum(axis=1).min() > 0.99
    assert np.abs(found - wanted).max() > 1e-4, "it is not the float32 model"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_file_of_8_bits_states_how_similarities_change(quantised):
    _, folder, line = quantised
    stored = pytest.importorskip("onnx").load(folder / "int8.onnx").metadata_props
    stated = {each.key: each.value for each in stored}
    printed = float(re.search(r"differ from PyTorch by (\S+) \(root mean square, allowed 0.04\)", line)[1])
    assert printed <= 0.04
    assert float(stated["similarity_change_rms"]) == pytest.approx(printed, abs=6e-4)
    assert stated["similarity_change_rms_allowed"] == "0.04"
    assert float(stated["similarity_to_original_lowest"]) <= float(stated["similarity_to_original_median"]) <= 1
    assert (stated["calibration_prints"], stated["checked_prints"]) == ("8 synthetic", "8 synthetic")
    assert float(re.search(r"; (\S+) ms per print in batches of 8, float32 ONNX", line)[1]) > 0
    check_file(folder / "int8.onnx", KIND)
    assert (folder / "int8.onnx").stat().st_mode & 0o777 == 0o600


def test_embeddings_that_change_too_much_are_not_written(quantised, tmp_path, monkeypatch):
    extractor, folder, _ = quantised
    monkeypatch.setattr(int8_check, "FINGERS", 2)  # the prints of the fixture, which are kept
    monkeypatch.setattr(export_module, "CALIBRATION", (2, 4))
    noise = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    worse = int8_check.changes(extractor, lambda images: noise / np.linalg.norm(noise, axis=1, keepdims=True))
    assert worse.rms > 0.1
    monkeypatch.setattr(export_module, "changes", lambda *_: worse)
    monkeypatch.setattr(export_module, "quantised", lambda *_: pytest.importorskip("onnx").load(folder / "int8.onnx"))
    monkeypatch.setattr(export_module, "onnx_file", lambda _: b"")
    with pytest.raises(UserError, match=r"8 bits change the similarity of two prints by .* without --int8"):
        export_module.save_int8(extractor, None, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
