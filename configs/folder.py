"""Your own images: a folder with one folder per class.

    python -m jaxvision.main --config configs/folder.py --workdir runs/mine --config.source.data_dir=photos
    python -m jaxvision.main --config configs/folder.py:efficientnet_b3.ra2_in1k --config.source.data_dir=photos

`photos/` holds ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` or ``test/CLASS/*.jpg``. With ``CLASS/*.jpg`` only, a
seeded part of each class is held out as the test data. The argument after the colon is any model of
`jaxvision list --pretrained`.

Recipe: AdamW for 20 epochs with learning rate 1e-3, layer-wise decay 0.75, label smoothing 0.1, crops and flips. The
layer-wise decay reduces overfitting on small datasets.

With ``val/``, the evaluations during training use it and choose the exported checkpoint, and ``test/`` is evaluated
once, at the end. Without ``val/``, the last step is exported. To choose a checkpoint or to stop early without ``val/``,
hold out a part of the training images: --config.source.validation_fraction=0.1.

- Few images or little time: --config.model.freeze_backbone=True trains only the head.
- No network: --config.model.checkpoint_path=model.safetensors reads a weight file of timm.
- From scratch: --config.model.pretrained=False.

Cost and result: depend on your images.
"""

from ml_collections import ConfigDict


def get_config(model: str = "resnet50.a1_in1k") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "folder", "data_dir": "photos"})
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
