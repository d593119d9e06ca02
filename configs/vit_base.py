"""ViT-B/16 fine-tuned on CIFAR-10 at 224 px.

    python -m jaxvision.main --config configs/vit_base.py --workdir runs/vit_base

Recipe: SGD with momentum 0.9, learning rate 0.01 with cosine decay, no weight decay, batch 64, 10 epochs,
gradient norm clipped to 1 (Dosovitskiy et al., https://arxiv.org/abs/2010.11929, appendix B.1.1, at the
smaller resolution and batch of the Hugging Face model edadaltocg/vit_base_patch16_224_in21k_ft_cifar10, which
reports 98.96 % with the weights below). Published, 384 px, 10,000 steps of 512: 99.02 %
(google-research/vision_transformer).

Measured with this file: not yet; a few steps are run in the tests.

Data: CIFAR-10 as TensorFlow Datasets prepares it (ArrayRecord); point --config.source.data_dir to it.
From a local file instead of the hub: --config.model.checkpoint_path=model.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "tfds", "dataset": "cifar10"})
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
