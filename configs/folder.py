"""Your own images: a folder with one folder per class.

    python -m jaxvision.main --config configs/folder.py --workdir runs/mine --config.source.data_dir=photos
    python -m jaxvision.main --config configs/folder.py:efficientnet_b3.ra2_in1k --config.source.data_dir=photos

`photos/` holds ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` or ``test/CLASS/*.jpg``. With ``CLASS/*.jpg`` only, a
seeded fifth of each class is held out as the test data. Without ``val/``, a part of the training images is held out as
the validation data (`source.validation_fraction`). The argument after the colon is any model of
`jaxvision list --pretrained`.

Recipe: probe, then fine-tune (Kumar et al. 2022, https://arxiv.org/abs/2202.10054). A logistic regression on the
features of the training images becomes the head, and is evaluated as step 0. Then all layers train, except BatchNorm,
which keeps the statistics that the head was fitted with: AdamW, crops and flips. Epochs and warm-up depend on the
number of training images, learning rate and layer decay on the model; the console prints them. The run exports the
checkpoint that is best on the validation data: step 0, the probe, if fine-tuning did not improve on it. ``test/`` is
evaluated once, at the end.

- A few hundred images: run `jaxvision probe` first, which is quick and tests every image by cross-validation.
- Little time: --config.model.freeze_backbone=True trains only the head, with the features of augmented images.
- No network: --config.model.checkpoint_path=model.safetensors reads a weight file of timm.
- From scratch: --config.model.pretrained=False --config.model.freeze_batch_norm=False --config.train.head_init=None
  --config.train.epochs=100 --config.optimizer.learning_rate=1e-3
  --config.optimizer.layer_decay=None.

Cost and result: depend on your images. docs/transfer_learning.md has a measured example.
"""

from ml_collections import ConfigDict


def get_config(model: str = "resnet50.a1_in1k") -> ConfigDict:
    config = ConfigDict(type_safe=False)  # so that a number may replace "auto"
    config.seed = 0
    config.source = {"name": "folder", "data_dir": "photos", "validation_fraction": "auto"}
    config.data = {"batch_size": 32}
    config.model = {"name": model, "pretrained": True, "freeze_batch_norm": True}
    config.augment = {"crop": "resized", "crop_scale": (0.35, 1.0), "flip": 0.5}
    config.optimizer = {
        "name": "adamw",
        "learning_rate": "auto",
        "weight_decay": 0.05,
        "layer_decay": "auto",
        "clip_norm": 1.0,
    }
    config.schedule = {"name": "cosine", "warmup_epochs": "auto"}
    config.train = {"epochs": "auto", "head_init": "probe"}
    return config
