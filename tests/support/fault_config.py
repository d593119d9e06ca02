"""A run of a few seconds with everything that has to survive a restart: ``fault_config.py:memory`` or ``:streamed``.

Both have augmentation, mixup, dropout, stochastic depth and a moving average. The first has BatchNorm, the second
worker processes; its images are in the folder ``FAULT_IMAGES``.
"""

from __future__ import annotations

import os

from ml_collections import ConfigDict


def get_config(data: str = "memory") -> ConfigDict:
    """Returns the config; `data` says whether images are kept in ``"memory"`` or ``"streamed"``."""
    config = {
        "seed": 3,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "source": {"name": "digits"},
        "data": {"batch_size": 16, "eval_batch_size": 64},
        "model": {"name": "test_efficientnet", "image_size": 32, "dropout": 0.1, "drop_path": 0.2},
        "augment": {"crop_padding": 1, "mixup": 0.2, "cutmix": 0.5, "erase": 0.3},
        "optimizer": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05},
        "train": {"steps": 40, "evaluate_every": 0.1, "ema_decay": 0.9, "log_every": 3, "save_every": 5},
    }
    if data == "streamed":
        config["source"] = {"name": "folder", "data_dir": os.environ["FAULT_IMAGES"]}
        config["data"]["workers"] = 2
        config["model"] = {"name": "test_vit", "image_size": 32, "patch_size": 8, "dropout": 0.1, "drop_path": 0.2}
        config["augment"] = {"crop": "resized", "flip": 0.5, "mixup": 0.2, "rand_augment": "rand-m9-n1"}
        config["train"]["evaluate_every"] = 2.5
    return ConfigDict(config)
