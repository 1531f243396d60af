"""1,500,000 prints of 150,000 fingers, on eight GPUs of 80 GB or on two machines of eight.

accelerate launch --config_file recipes/hardware/gpus8.yaml recipes/huge_1_5m.py --data DATASET --out RUN

on two machines, on each of them, with RANK 0 on the first and 1 on the second, and HOST the first one's name:
accelerate launch --config_file recipes/hardware/nodes2x8.yaml --machine_rank RANK --main_process_ip HOST
    recipes/huge_1_5m.py --data DATASET --out RUN --training.batch-size 128

What differs from xlarge_1m.py: an update compares its prints with a third of the fingers, drawn anew each time
(PartialFC), and leaves out other fingers that look like the print's own, because among so many some have two names;
fewer epochs. --training.batch-size 128 on sixteen GPUs keeps the update, and so the learning rate, as it is.
"""

import dataclasses

from xlarge_1m import CONFIG as XLARGE

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    XLARGE,
    loss=dataclasses.replace(XLARGE.loss, class_sample_rate=0.33, interclass_filter_threshold=0.7),
    training=dataclasses.replace(XLARGE.training, epochs=20),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
