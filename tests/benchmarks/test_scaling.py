"""The model of communication behind `plan` names every collective of a step, with its bytes."""

import json
import os
from pathlib import Path

import pytest
import starting

from fingerprint_accel.plan_network import count
from fingerprint_accel.plan_scaling import collectives

TRIED = ("sharded, matryoshka", "full, softmax, bf16")  # the benchmark tries more
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FINGERS, SIZE, STEPS = 24, 32, 3  # of the dataset `prints`; DDP has its final buckets in the second step
COUNT = f"""
import dataclasses, json, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import scaling_run

data, out = map(Path, sys.argv[1:])
for name in {TRIED}:
    config = scaling_run.VARIATIONS[name](scaling_run.configuration(data, out / name, sharded=True, steps={STEPS}))
    recorded = scaling_run.train(config, counted=True)
    print(json.dumps([name, recorded.collectives]), flush=True)
"""


@pytest.fixture(scope="module")
def counted(prints, tmp_path_factory):
    """Operations and bytes of a step of rank 0 of two, by variation."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    out = tmp_path_factory.mktemp("scaling")
    result = starting.run(["-c", COUNT, prints, out], 2, environment)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]
    return {name: [tuple(each) for each in found] for name, found in lines[::2]}  # both ranks print


@pytest.fixture
def scaling_run(monkeypatch):
    import scaling_run

    return scaling_run


@pytest.mark.parametrize("name", TRIED)
def test_every_collective_of_a_step_is_modelled(name, counted, scaling_run, prints, tmp_path):
    config = scaling_run.VARIATIONS[name](scaling_run.configuration(prints, tmp_path, sharded=True, steps=STEPS))
    modelled = collectives(count(config.model, SIZE), config, FINGERS, processes=2)
    assert [(each.kind, each.size) for each in modelled] == counted[name]
    buckets = [each for each in modelled if each.purpose == "gradients"]
    assert len(buckets) >= 4, "or their order would not matter"
