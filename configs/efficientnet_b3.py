"""EfficientNet-B3 fine-tuned on CIFAR-10 at 300 pixels.

    python -m jaxvision.main --config configs/efficientnet_b3.py --workdir runs/efficientnet_b3

Recipe: the transfer setting of EfficientNetV2 (Tan & Le, https://arxiv.org/abs/2104.00298): 10,000 steps of 512 images
at the training resolution, one epoch of warm-up, label smoothing 0.1, weight decay 1e-5, and a moving average of the
weights with decay 0.9996. AdamW with cosine decay replaces RMSProp. Published for CIFAR-10: EfficientNet-B0 98.1 %, B7
98.9 % (https://arxiv.org/abs/1905.11946, table 5), none for B3.

Cost and result: not measured. The tests run a few steps.

Data: CIFAR-10, downloaded (170 MB) and written to ~/tensorflow_datasets if it is not there. For another folder, set
--config.source.data_dir. The model trains on 98 % of the training split. Each evaluation during training uses the last
2 %, which also chooses the exported checkpoint. The test split is evaluated once, at the end.
Weights: from the hub, or from a file with --config.model.checkpoint_path=model.safetensors.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict(
        {"name": "tfds", "dataset": "cifar10", "train": "train[:98%]", "validation": "train[98%:]"}
    )
    config.data = ConfigDict({"batch_size": 512})
    config.model = ConfigDict(
        {
            "name": "efficientnet_b3.ra2_in1k",
            "pretrained": True,
            "image_size": 300,
            "dropout": 0.3,
            "dtype": "bfloat16",
        }
    )
    config.augment = ConfigDict({"crop": "resized", "crop_scale": (0.5, 1.0), "flip": 0.5})
    config.loss = ConfigDict({"label_smoothing": 0.1})
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 5e-4, "weight_decay": 1e-5})
    config.schedule = ConfigDict({"name": "cosine", "warmup_steps": 96})
    config.train = ConfigDict({"steps": 10_000, "ema_decay": 0.9996, "ema_warmup": True, "evaluate_every": 5.0})
    return config
