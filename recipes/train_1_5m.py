"""Trains DeepPrint from random weights on 1,500,000 prints of 150,000 fingers, on eight or sixteen GPUs of 80 GB.

accelerate launch --quiet --config_file recipes/hardware/gpus8.yaml recipes/train_1_5m.py --data DATASET --out RUN

For two machines of eight GPUs, start this command on each machine. RANK is 0 on the first machine and 1 on the second.
HOST is the name of the first machine:
accelerate launch --quiet --config_file recipes/hardware/nodes2x8.yaml --machine_rank RANK --main_process_ip HOST
    recipes/train_1_5m.py --data DATASET --out RUN --training.batch-size 128

Differences from train_1m.py:
- Each update compares its prints with a random third of the fingers (PartialFC; An et al. 2022, arXiv 2203.15565).
- The loss of a print ignores other fingers that are very similar to it. Among 150,000 fingers, some are likely to be
  stored as two fingers.
- There are fewer epochs.
On sixteen GPUs, --training.batch-size 128 keeps 2,048 prints per update, for which the learning rate is chosen.
"""

import dataclasses

from train_1m import CONFIG as TRAIN_1M

from fingerprint_accel.recipe import run_recipe

CONFIG = dataclasses.replace(
    TRAIN_1M,
    loss=dataclasses.replace(TRAIN_1M.loss, class_sample_rate=0.33, interclass_filter_threshold=0.7),
    training=dataclasses.replace(TRAIN_1M.training, epochs=20),
)

if __name__ == "__main__":
    run_recipe(CONFIG, __doc__ or "")
