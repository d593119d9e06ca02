"""ViT-S/16 on ImageNet-1k from scratch, 90 epochs.

    python -m jaxvision.main --config configs/vit_small_imagenet.py --workdir runs/vit_small_imagenet

Recipe: Beyer et al., "Better plain ViT baselines for ImageNet-1k", https://arxiv.org/abs/2205.01580: AdamW with
learning rate 1e-3 and cosine decay, batch 1024, 10,000 steps of warm-up, gradients clipped to norm 1, RandAugment
(2, 10), mixup 0.2. Their weight decay is 1e-4, independent of the learning rate; here it is 0.1 times the rate.
Published: 76.5 % after 6 to 7 hours on a TPU v3-8, with global average pooling and fixed sine positions. This config
uses timm's architecture, with a class token and learned positions.

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
    config.model = ConfigDict({"name": "vit_small_patch16_224", "image_size": 224, "dtype": "bfloat16"})
    config.augment = ConfigDict(
        {
            "crop": "resized",
            "crop_scale": (0.05, 1.0),
            "flip": 0.5,
            "rand_augment": "rand-m10-n2-p1",
            "mixup": 0.2,
        }
    )
    config.optimizer = ConfigDict({"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0})
    config.schedule = ConfigDict({"name": "cosine", "warmup_steps": 10_000})
    config.train = ConfigDict({"epochs": 90.0})
    return config
