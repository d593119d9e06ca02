"""ViT-S/16 on ImageNet-1k from scratch, 90 epochs.

    python -m jaxvision.main --config configs/vit_small_imagenet.py --workdir runs/vit_small_imagenet

Recipe: Beyer et al., "Better plain ViT baselines for ImageNet-1k", https://arxiv.org/abs/2205.01580: AdamW
with learning rate 1e-3 and cosine decay, weight decay 0.1 (theirs is 1e-4 independent of the rate), batch
1024, 10,000 steps of warm-up, gradient norm clipped to 1, RandAugment (2, 10), mixup 0.2. They report 76.5 %
with global average pooling and fixed sine positions; timm's architecture here has a class token and learned
positions.

Measured with this file: not yet. Their 90 epochs took 6 to 7 hours on a TPU v3-8.

Data: ImageNet-1k as TensorFlow Datasets prepares it (ArrayRecord).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "tfds", "dataset": "imagenet2012", "test": "validation"})
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
