import html
import io
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shard_writer import ShardWriter

from fingerprint_accel.cli import main
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.inspection import contact_sheet
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.history import training_png
from fingerprint_accel.evaluation.provenance import command_line
from fingerprint_accel.evaluation.report import SYNTHETIC, is_synthetic
from fingerprint_accel.evaluation.run import Extras, default_out, evaluate, evaluate_command
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.bootstrap import bootstrap_eer, bootstrap_scores, bootstrap_share, fnmr_at

RECORDS = [
    {"step": 1, "kind": "train", "loss": 3.0, "learning_rate": 0.1},
    {"step": 2, "kind": "train", "loss": 2.0, "learning_rate": 0.2, "augmentation": 0.5, "margin": 0.0},
    {"step": 2, "kind": "validation", "eer": 0.2},
]


@pytest.fixture
def run(tmp_path):
    """A run folder as far as its exported model and its records go."""
    torch.manual_seed(0)
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    folder = tmp_path / "run"
    FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(
        folder / "model"
    )
    (folder / "config.yaml").touch()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return folder


def with_source(prints, out, sources):
    shards = open_dataset(prints)
    with ShardWriter(out, shards.info.ppi, shards.info.canvas) as writer:
        for row, source in zip(range(len(shards)), sources, strict=False):
            key, impression = shards.key_of_finger[shards.fingers[row]], int(shards.impressions[row])
            writer.add(Record(shards.image(row).copy(), key, impression, source, np.empty((0, 4), np.float32)))
    return out


def size(png):
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:2], RECORDS[:1]])
def test_training_png(records, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    png = training_png(file)
    assert png is not None
    assert size(png) == (1344, 504)


@pytest.mark.parametrize("text", ["", json.dumps(RECORDS[2]) + "\n", '{"step": 1, "kind": "train", "loss": NaN}\n'])
def test_no_training_png_without_a_loss(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert training_png(tmp_path / "metrics.jsonl") is None


def test_page_tells_all_in_order(run, prints, tmp_path):
    out = tmp_path / "evaluation"
    evaluate_command(run / "model", prints, "all-pairs", out, 32)
    pictures = ("cmc", "det", "roc", "samples", "scores", "training")
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(["metrics.json", "report.html", *(f"{name}.png" for name in pictures)])
    sizes = {name: size((out / f"{name}.png").read_bytes()) for name in pictures}
    assert sizes.pop("training") == (1344, 504)
    assert sizes.pop("samples") == (4 * 320, 4 * (320 + 18))
    assert set(sizes.values()) == {(672, 552)}
    page = (out / "report.html").read_text()
    marks = [
        "<h1>run on prints</h1>",
        "96 prints of 24 fingers, protocol all-pairs",
        '<div class="cards">',
        "0 of 96 prints",
        'alt="DET curve"',
        'alt="ROC curve"',
        'alt="score histogram"',
        'alt="CMC curve"',
        "<h2>Verification</h2>",
        "<td>EER</td>",
        "<h2>Identification</h2>",
        "unknown: training data not recorded",
        "<h2>Groups</h2>",
        "By pattern class",
        "<h2>Training</h2>",
        "<h2>Samples of the evaluated data</h2>",
        "<h2>Mated comparisons with the lowest similarity</h2>",
        "<h2>Non-mated comparisons with the highest similarity</h2>",
        "<h2>How this report was made</h2>",
        "<h2>Definitions</h2>",
    ]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    sources = re.findall(r'<img [^>]*src="([^"]*)"', page)
    assert len(sources) == len(pictures) + 2 * 4 * 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_model_without_its_run_has_no_training_section(run, prints, tmp_path):
    out = tmp_path / "evaluation"
    evaluate_command(run / "model", prints, "fvc", out, 32)
    assert (out / "training.png").exists()
    shutil.copytree(run / "model", tmp_path / "copied")
    evaluate_command(tmp_path / "copied", prints, "fvc", out, 32, overwrite=True)
    assert not (out / "training.png").exists()
    assert "<h2>Training</h2>" not in (out / "report.html").read_text()


def test_notice_is_for_synthetic_prints_only(run, prints, tmp_path):
    made = with_source(prints, tmp_path / "made", ["synthetic-1"] * 24)
    mixed = with_source(prints, tmp_path / "mixed", ["synthetic-1"] * 23 + ["101_1.tif"])
    taken = with_source(prints, tmp_path / "taken", ["scans/synthetic/101_1.tif"] * 24)
    assert [is_synthetic(open_dataset(folder)) for folder in (made, mixed, taken)] == [True, False, False]
    for dataset, expected in ((made, 1), (taken, 0)):
        evaluate_command(run / "model", dataset, "all-pairs", tmp_path / "evaluation", 32, overwrite=True)
        assert (tmp_path / "evaluation" / "report.html").read_text().count(SYNTHETIC) == expected


def test_contact_sheet_is_as_wide_as_its_prints(prints):
    shards = open_dataset(prints)
    assert contact_sheet(shards, fingers=3).size == (4 * 320, 3 * 338)
    assert contact_sheet(shards, fingers=3, columns=2).size == (2 * 320, 3 * 338)


def test_numbers_of_everything(ten_fingers, tiny_model, write_prints, tmp_path, capsys):
    """Another model, moved probes, groups and a sample of the comparisons, in one evaluation."""
    extras = Extras(pairs=30, seed=4, by="left|right", against=tiny_model)
    out = tmp_path / "evaluation"
    evaluate_command(tiny_model, ten_fingers.folder, "sampled", out, 64, extras)
    values = json.loads((out / "metrics.json").read_text())
    assert (values["mated"], values["nonmated"], values["nonmated_possible"]) == (30, 30, 720)
    assert values["fnmr_at_fmr"].keys() == {"0.1", "0.01", "0.001", "0.0001", "1e-05", "1e-06"}
    assert [rate is None for rate in values["fnmr_at_fmr"].values()] == [False] + 5 * [True]
    assert values["identification"]["closed_set"]["searches"] == 30
    assert values["identification"]["closed_set"]["cmc"][-1] == 1
    assert values["identification"]["open_set"]["nonmated_searches"] == 15
    assert [group["name"] for group in values["breakdowns"][0]["groups"]] == ["left", "right", "across"]
    assert values["training_data"]["known"] is False
    assert values["thresholds"].keys() == values["fnmr_at_fmr"].keys()
    assert [threshold is None for threshold in values["thresholds"].values()] == [False] + 5 * [True]
    assert set(values["tar_thresholds"].values()) == {None}
    for threshold in (values["eer_threshold"], values["zero_fmr_threshold"], values["breakdowns"][0]["threshold"]):
        assert -1 <= threshold <= 1
    rates, thresholds = (values["identification"]["open_set"][name] for name in ("fnir", "fnir_thresholds"))
    assert [rates[fpir] is None for fpir in ("0.01", "0.1")] == [True, False]
    assert [thresholds[fpir] is None for fpir in ("0.01", "0.1")] == [True, False]
    assert "accepted if its similarity is at or above" in values["definitions"]["Threshold"]
    assert [row["ours"] - row["theirs"] for row in values["against"]["differences"]] == [0]
    text = capsys.readouterr().out
    for expected in ("EER  ", "rank-1 identification", "across", "no difference shown"):
        assert expected in text
    page = (out / "report.html").read_text()
    closed, opened = values["identification"]["closed_set"], values["identification"]["open_set"]
    fnmr, failed = values["fnmr_at_fmr_interval_95"], values["failure_to_acquire"]
    shown = {
        "EER": (values["eer"], values["eer_interval_95"], values["eer_threshold"]),
        "FNMR at FMR 10 %": (values["fnmr_at_fmr"]["0.1"], fnmr["0.1"], values["thresholds"]["0.1"]),
        "ZeroFMR": (values["zero_fmr"], None, values["zero_fmr_threshold"]),
        "failure to acquire (FTA)": (failed["rate"], failed["interval_95"], None),
        "rank-5 identification": (closed["rank"]["5"], closed["rank_interval_95"]["5"], None),
        "FNIR at FPIR 10 %": (rates["0.1"], opened["fnir_interval_95"]["0.1"], thresholds["0.1"]),
    }
    for name, (rate, interval, threshold) in shown.items():
        ends = f"{interval[0]:.2%} to {interval[1]:.2%}" if interval else "-"
        cells = [f"{rate:.2%}", ends, f"{threshold:.3f}" if threshold is not None else "-"]
        row = " +".join(map(re.escape, [name, *cells]))
        assert re.search(rf"^{row}$", text, re.MULTILINE), name
        assert f"<td>{name}</td>" + "".join(f"<td class=n>{cell}</td>" for cell in cells) in page
        assert interval is None or interval[0] <= rate <= interval[1]
    assert [interval is None for interval in fnmr.values()] == [False] + 5 * [True]
    assert page.index("<h2>Comparison with tiny</h2>") < page.index("<h2>Groups</h2>")


def test_prints_of_low_quality_count_as_failures_to_acquire(ten_fingers, tiny_model, monkeypatch):
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    quality = np.full(40, 0.5)
    quality[3] = 0.49
    monkeypatch.setattr(extractor, "quality", lambda shards, batch_size: quality)
    found = evaluate(extractor, ten_fingers, "all-pairs", extras=Extras(minimum_quality=0.5))
    whole = evaluate(extractor, ten_fingers, "all-pairs")
    assert int(np.isneginf(found.scores.mated).sum()) == 3
    assert int(np.isneginf(found.scores.nonmated).sum()) == 36
    assert found.metrics.mated == whole.metrics.mated == 60
    assert found.metrics.zero_fmr >= 3 / 60
    for result, count, share in ((found, 1, "2.50%"), (whole, 0, "0.00%")):
        assert ("prints that failed to acquire", f"{count} of 40") in result.verification_facts()
        assert result.verification_rates()[-1][:2] == ("failure to acquire (FTA)", share)
        expected = {"prints": 40, "failed": count, "rate": count / 40, "interval_95": result.intervals.failed}
        assert result.values()["failure_to_acquire"] == expected
    assert found.intervals.failed == pytest.approx((0, 0.075)), "up to three draws of one finger of ten"
    assert whole.intervals.failed == (0, 0)


def test_the_same_evaluation_gives_the_same_files_but_for_date_and_command(ten_fingers, tiny_model, tmp_path):
    arguments = (tiny_model, ten_fingers.folder, "all-pairs")
    for out in (tmp_path / "a", tmp_path / "b"):
        evaluate_command(*arguments, out, 64)
    for path in (tmp_path / "a").iterdir():
        ours, theirs = path.read_bytes().splitlines(), (tmp_path / "b" / path.name).read_bytes().splitlines()
        differing = [line for line, other in zip(ours, theirs, strict=True) if line != other]
        if path.suffix == ".png":
            assert not differing
        else:
            assert len(differing) <= 3, "the date and its checksums, unless both were made in the same second"
            words = (b"date", b'"report.html": ', b'"checksum": ')
            assert all(any(word in line for word in words) for line in differing)


def test_the_report_states_its_origin(ten_fingers, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/fingerprint-accel", "evaluate", "a model", str(Path.home() / "prints")])
    before = datetime.now(UTC).replace(microsecond=0)
    evaluate_command(tiny_model, ten_fingers.folder, "fvc", tmp_path / "out", 64)
    values, page = (tmp_path / "out" / "metrics.json").read_text(), (tmp_path / "out" / "report.html").read_text()
    values = json.loads(values)
    assert before <= datetime.fromisoformat(values["date"]) <= datetime.now(UTC)
    assert datetime.fromisoformat(values["date"]).utcoffset() == timedelta(0)
    assert values["command"] == "fingerprint-accel evaluate 'a model' ~/prints"
    assert values["versions"]["numpy"] == np.__version__
    assert list(values["versions"]) == ["fingerprint_accel", "torch", "numpy", "Python", "platform"]
    for text in (values["date"], html.escape(values["command"]), values["versions"]["platform"]):
        assert f"<td>{text}</td>" in page
    assert f"torch {torch.__version__}, numpy {np.__version__}" in page
    assert "1,000 draws with replacement" in values["interval_method"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/opt/bin/fingerprint-accel", "evaluate", "small", "db 1"], "fingerprint-accel evaluate small 'db 1'"),
        (["/opt/fingerprint_accel/cli/__main__.py", "plan"], "python -m fingerprint_accel.cli plan"),
        (
            ["/home/ann/recipes/quickstart.py", "--out", "/home/ann/my runs"],
            "python ~/recipes/quickstart.py --out ~/'my runs'",
        ),
        (
            ["fingerprint-accel", "--out=/home/ann/x y", "/home/anna/x"],
            "fingerprint-accel --out=\"$HOME\"/'x y' /home/anna/x",
        ),
        (["fingerprint-accel", "/home/ann/"], "fingerprint-accel ~/"),
    ],
)
def test_command_lines_can_be_pasted_into_a_shell(argv, command):
    assert command_line(argv, Path("/home/ann")) == command
    shell = subprocess.run(
        ["sh", "-c", f"set -- {command}; for word; do printf '%s\\n' \"$word\"; done"],
        capture_output=True, text=True, env={"HOME": "/home/ann"},
    )  # fmt: skip
    assert shell.stdout.splitlines()[-len(argv[1:]) :] == argv[1:]


def test_a_report_is_replaced_only_with_overwrite(ten_fingers, tiny_model, tmp_path, monkeypatch, capsys):
    out, words = tmp_path / "out", ["evaluate", str(tiny_model), str(ten_fingers.folder)]
    evaluate_command(tiny_model, ten_fingers.folder, "fvc", out, 64)
    kept = (out / "metrics.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("fingerprint_accel.evaluation.run.open_extractor", None)  # nothing may be computed
        patched.setattr("sys.argv", ["fingerprint-accel", *words, "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2
    message = f"error: {out}: exists already; choose another folder, or add --overwrite\n"
    assert capsys.readouterr().err.endswith(message)
    assert (out / "metrics.json").read_bytes() == kept
    monkeypatch.setattr("sys.argv", ["fingerprint-accel", *words, "--out", str(out), "--overwrite"])
    main()
    assert json.loads((out / "metrics.json").read_text())["protocol"] == "all-pairs"


def test_reports_of_several_models_lie_side_by_side(ten_fingers, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "runs" / "other" / "model")
    for model in (tiny_model, Path("runs/other/model")):
        evaluate_command(model, ten_fingers.folder, "fvc", None, 64)
    names = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert names == ["other-on-fingers", "tiny-on-fingers"]
    with pytest.raises(UserError, match=r"evaluation/tiny-on-fingers: exists already; .* --overwrite"):
        evaluate_command(tiny_model, ten_fingers.folder, "all-pairs", None, 64)
    assert default_out(Path("runs/a/checkpoints/step-00000010"), Path("db")) == Path("evaluation/a-step-00000010-on-db")
    assert default_out(Path("small"), Path()) == Path(f"evaluation/small-on-{tmp_path.name}")
    assert default_out(Path("runs/other/model/.."), Path("db/")) == Path("evaluation/other-on-db")


def test_intervals_of_an_evaluation_are_those_of_its_scores(ten_fingers, tiny_model):
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    found = evaluate(extractor, ten_fingers, "all-pairs")
    intervals = found.intervals
    assert intervals.eer == bootstrap_eer(found.scores)
    assert intervals.fnmr_at_fmr.keys() == found.metrics.fnmr_at_fmr.keys() == {0.1, 0.01}
    assert intervals.fnmr_at_fmr[0.01] == bootstrap_scores(found.scores, [fnmr_at(0.01)])[0]
    mated = found.closed.is_mated
    assert intervals.identified[5] == bootstrap_share(found.closed.rank[mated] <= 5, found.closed.fingers[mated])
    assert list(intervals.fnir) == [0.1]
    for group in found.breakdowns[0].groups[:2]:
        for rate in ("eer", "fnmr", "fmr"):
            low, high = getattr(group, f"{rate}_interval_95")
            assert low <= getattr(group, rate) <= high
    assert found.breakdowns[0].groups[2].eer_interval_95 is None


def test_quality_is_that_of_the_extractor(prints):
    torch.manual_seed(0)
    network = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    extractor = FingerprintExtractor(network, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    shards = open_dataset(prints)
    quality = extractor.quality(shards)
    floor = float(np.quantile(quality, 0.25))
    found = evaluate(extractor, shards, "all-pairs", extras=Extras(minimum_quality=floor))
    assert found.failed == int((quality < floor).sum()) > 10
    lost = (quality < floor)[found.scores.pairs.mated].any(axis=1)
    assert np.isneginf(found.scores.mated).tolist() == lost.tolist()
    with pytest.raises(UserError, match="--minimum-quality 2"):
        Extras(minimum_quality=2)


def test_listed_comparisons_and_searches(ten_fingers, tiny_model, tmp_path):
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("reference,probe\n1/0,1/1\n2/0,3/0\n")
    found = evaluate(extractor, ten_fingers, "fvc", extras=Extras(pairs_file=pairs))
    assert (found.protocol, found.metrics.mated, found.metrics.nonmated) == ("list", 1, 1)
    searches = tmp_path / "searches.json"
    gallery = {"array_subject": [0, 1], "array_impression": [0, 0]}
    probes = {"array_subject": [0, 2], "array_impression": [1, 1]}
    searches.write_text(json.dumps([{"gallery": gallery, "probes": probes, "mated": [True, False]}]))
    found = evaluate(extractor, ten_fingers, "fvc", extras=Extras(pairs_file=searches))
    assert (found.protocol, found.metrics.nonmated) == ("fvc", 45)
    assert (found.closed.enrolled, found.closed.is_mated.tolist()) == (2, [True, False])
