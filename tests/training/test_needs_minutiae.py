"""A minutia branch needs minutiae: training says so at the start, not by a map loss of 0."""

import dataclasses

import numpy as np
import pytest
from shard_writer import ShardWriter

from fingerprint_accel.config import ReadingConfig
from fingerprint_accel.data.shard_writing import Record
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.splitting import split_prints
from fingerprint_accel.errors import UserError, one_line_errors
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.recipe import run_training
from fingerprint_accel.training.setup import set_up

FRACTION = 0.3


@pytest.fixture
def with_some(prints, tiny, tmp_path):
    """Makes `tiny` with a copy of its dataset in which only the chosen fingers (F,) bool have minutiae."""

    def make(chosen, name="some", **model):
        shards, folder = open_dataset(prints), tmp_path / name
        with ShardWriter(folder, shards.info.ppi, shards.info.canvas) as writer:
            for row, finger in enumerate(shards.fingers):
                minutiae, _ = shards.minutiae(np.array([row]))
                key, impression = shards.key_of_finger[finger], int(shards.impressions[row])
                points = minutiae[0] if chosen[finger] else np.empty((0, 4), np.float32)
                writer.add(Record(shards.image(row), key, impression, f"{row}.png", points))
        config = dataclasses.replace(tiny, data=str(folder))
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))

    return make


def held_out(prints):
    """(F,) bool: the fingers that are held out."""
    shards = open_dataset(prints)
    rows = split_prints(shards, ReadingConfig(validation_fraction=FRACTION)).validation
    return np.bincount(shards.fingers[rows], minlength=24) > 0


def refused(config):
    with pytest.raises(UserError) as error:
        set_up(config)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("variant", "remedy"), [("TexMinu", "Tex"), ("Minu", "Tex"), ("LocMinu", "LocTex"), ("LocTexMinu", "LocTex")]
)
def test_data_without_minutiae_are_refused_with_the_remedy(with_some, prints, variant, remedy):
    """Minutiae of held-out fingers do not count: nothing is learned from them."""
    out = held_out(prints)
    assert 0 < out.sum() < 24
    config = with_some(out, variant=variant)
    assert refused(config) == (
        f"{config.data}: none of the {4 * (~out).sum()} training prints has minutiae, but {variant} learns from them; "
        "`import ... --minutiae FOLDER` reads .xyt files of mindtct and ISO templates, also those beside the images; "
        f"--model.variant {remedy} trains without minutiae"
    )
    set_up(dataclasses.replace(config, model=dataclasses.replace(config.model, variant=remedy)))


def test_it_is_one_line_and_exit_code_2_before_anything_is_written(with_some, tmp_path, capsys):
    config = with_some(np.zeros(24, bool))
    with pytest.raises(SystemExit) as end, one_line_errors():
        run_training(config)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {tmp_path}/some: none of the ")
    assert not (tmp_path / "run").exists()


def test_a_small_share_is_told_and_half_is_not(with_some, prints, tmp_path, capsys):
    train = np.flatnonzero(~held_out(prints))
    total = 4 * len(train)
    few = np.isin(np.arange(24), train[:3])
    config = with_some(few)
    set_up(config)
    assert capsys.readouterr().out == (
        f"{tmp_path}/some: 12 of {total} training prints have minutiae; only these train the minutia map\n"
    )
    half = np.isin(np.arange(24), train[: -(-len(train) // 2)])
    set_up(with_some(half, "half"))
    assert capsys.readouterr().out == ""


def test_where_no_map_is_learned_none_are_needed(with_some, tiny, tmp_path):
    """Without the map loss, or behind a frozen trunk; but a network that starts from another goes on with its maps."""
    model = tmp_path / "model"
    FingerprintExtractor(tiny.model, tiny.preprocess, ppi=300, canvas=320).save_pretrained(model)
    config = with_some(np.zeros(24, bool), init_from=str(model))
    assert refused(config).endswith("; --loss.minutia-map-weight 0 trains without minutiae")
    set_up(dataclasses.replace(config, loss=dataclasses.replace(config.loss, minutia_map_weight=0.0)))
    set_up(dataclasses.replace(config, model=dataclasses.replace(config.model, trunk_frozen=True)))


def test_synthetic_sources_always_have_them(tiny):
    reading = dataclasses.replace(tiny.reading, validation_fraction=0.0)
    run = set_up(dataclasses.replace(tiny, reading=reading, data="synth:fingers=2,impressions=2,quality=clean"))
    assert run.train.with_minutiae == len(run.train) > 0
    batch = run.train.read(np.arange(len(run.train)), np.zeros(len(run.train), np.int64))
    assert int(batch.minutia_count.min()) > 0
