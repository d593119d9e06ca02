"""Your own pictures: a folder with one folder for each class.

    python -m jaxvision.main --config configs/folder.py --workdir runs/mine --config.source.data_dir=pictures
    python -m jaxvision.main --config configs/folder.py:efficientnet_b3.ra2_in1k --config.source.data_dir=pictures

`pictures/` holds ``train/CLASS/*.jpg`` and ``val/`` or ``test/`` likewise; without such folders
(``CLASS/*.jpg``) a seeded part of each class is held out. The argument after the colon is any model of
`jaxvision list --pretrained`.

Recipe: AdamW with layer-wise decay of the learning rate, which forgives small data sets: 20 epochs, 1e-3 with
decay 0.75, label smoothing 0.1, crops and flips. Few pictures or little time?
--config.model.freeze_backbone=True trains the head alone. No network?
--config.model.checkpoint_path=model.safetensors reads timm's file; --config.model.pretrained=False starts
from scratch.
"""

from ml_collections import ConfigDict


def get_config(model: str = "resnet50.a1_in1k") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "folder", "data_dir": "pictures"})
    config.data = ConfigDict({"batch_size": 32})
    config.model = ConfigDict({"name": model, "pretrained": True})
    config.augment = ConfigDict({"crop": "resized", "crop_scale": (0.35, 1.0), "flip": 0.5})
    config.loss = ConfigDict({"label_smoothing": 0.1})
    config.optimizer = ConfigDict(
        {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "layer_decay": 0.75, "clip_norm": 1.0}
    )
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 1.0})
    config.train = ConfigDict({"epochs": 20.0})
    return config
