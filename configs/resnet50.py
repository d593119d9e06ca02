"""ResNet-50 fine-tuned on CIFAR-10 at 224 px.

    python -m jaxvision.main --config configs/resnet50.py --workdir runs/resnet50

Recipe: the BiT-HyperRule (Kolesnikov et al., https://arxiv.org/abs/1912.11370): SGD with momentum 0.9,
learning rate 0.003 with batch 512, 500 steps of warm-up, 10,000 steps, divided by 10 at 30, 60 and 90 % of
them, mixup 0.1. It gives a ResNet-50 of that paper's weights 97.2 to 97.4 %; the weights here are timm's
`a1_in1k`, with BatchNorm.

Measured with this file: not yet; a few steps are run in the tests.

Data: CIFAR-10 as TensorFlow Datasets prepares it (ArrayRecord); point --config.source.data_dir to it.
From a local file instead of the hub: --config.model.checkpoint_path=model.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.source = ConfigDict({"name": "tfds", "dataset": "cifar10"})
    config.data = ConfigDict({"batch_size": 512})
    config.model = ConfigDict({"name": "resnet50.a1_in1k", "pretrained": True, "image_size": 224, "dtype": "bfloat16"})
    config.augment = ConfigDict({"crop": "resized", "crop_scale": (0.5, 1.0), "flip": 0.5, "mixup": 0.1})
    config.optimizer = ConfigDict({"name": "sgd", "learning_rate": 0.003, "momentum": 0.9})
    config.schedule = ConfigDict({"name": "step", "milestones": (0.3, 0.6, 0.9), "warmup_steps": 500})
    config.train = ConfigDict({"steps": 10_000, "evaluate_every": 5.0})
    return config
