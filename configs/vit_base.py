"""ViT-B/16 fine-tuned on CIFAR-10 at 224 pixels.

    python -m jaxvision.main --config configs/vit_base.py --workdir runs/vit_base

Recipe: Dosovitskiy et al., https://arxiv.org/abs/2010.11929, appendix B.1.1: SGD with momentum 0.9, cosine decay, no
weight decay, and gradients clipped to norm 1. Learning rate 0.01, batch 64, 10 epochs and 224 pixels are those of the
Hugging Face model edadaltocg/vit_base_patch16_224_in21k_ft_cifar10. Published by that model, with the same weights:
98.96 %. Published by google-research/vision_transformer at 384 pixels, 10,000 steps of 512 images: 99.02 %.

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
    config.data = ConfigDict({"batch_size": 64})
    config.model = ConfigDict(
        {
            "name": "vit_base_patch16_224.orig_in21k_ft_in1k",
            "pretrained": True,
            "image_size": 224,
            "dtype": "bfloat16",
        }
    )
    config.augment = ConfigDict({"crop": "resized", "crop_scale": (0.5, 1.0), "flip": 0.5})
    config.optimizer = ConfigDict({"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "clip_norm": 1.0})
    config.schedule = ConfigDict({"name": "cosine", "warmup_steps": 500})
    config.train = ConfigDict({"epochs": 10.0})
    return config
