"""EfficientNet-B0 on ImageNet-1k from scratch, 300 epochs.

    python -m jaxvision.main --config configs/efficientnet_b0_imagenet.py --workdir runs/efficientnet_b0_imagenet

Recipe: the regularization of timm's `efficientnet_b0.ra_in1k`: RandAugment m9-mstd0.5, random erasing 0.2 with noise,
dropout 0.2, stochastic depth 0.2, label smoothing 0.1, and a moving average of the weights with decay 0.9999. AdamW
with cosine decay replaces timm's RMSProp. The architecture is from Tan & Le, https://arxiv.org/abs/1905.11946.
Published for timm's weights: 77.7 % at 224 pixels.

Cost and result: not measured.

Data: ImageNet-1k in ~/tensorflow_datasets. If it is not there, the run writes it from ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, which you download to ~/tensorflow_datasets/downloads/manual. For another folder, set
--config.source.data_dir. The model trains on 99 % of the training split. Each evaluation during training uses the last
1 % ("minival"), which also chooses the exported checkpoint. The official validation split is evaluated once, at the
end, and reported as test.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict(
        {
            "name": "tfds",
            "dataset": "imagenet2012",
            "train": "train[:99%]",
            "validation": "train[99%:]",
            "test": "validation",
        }
    )
    config.data = ConfigDict({"batch_size": 1024})
    config.model = ConfigDict(
        {"name": "efficientnet_b0", "image_size": 224, "dropout": 0.2, "drop_path": 0.2, "dtype": "bfloat16"}
    )
    config.augment = ConfigDict(
        {"crop": "resized", "flip": 0.5, "rand_augment": "rand-m9-mstd0.5", "erase": 0.2, "erase_fill": "pixel"}
    )
    config.loss = ConfigDict({"label_smoothing": 0.1})
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 2e-3, "weight_decay": 0.05})
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 5.0})
    config.train = ConfigDict({"epochs": 300.0, "ema_decay": 0.9999, "ema_warmup": True})
    return config
