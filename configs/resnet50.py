"""ResNet-50 fine-tuned on CIFAR-10 at 224 pixels.

    python -m jaxvision.main --config configs/resnet50.py --workdir runs/resnet50

Recipe: the BiT-HyperRule (Kolesnikov et al., https://arxiv.org/abs/1912.11370): SGD with momentum 0.9 and learning rate
0.003 at batch 512, 10,000 steps with 500 of warm-up, the rate divided by 10 after 30, 60 and 90 % of them, and mixup
0.1. Published for the ResNet-50 weights of that paper: 97.2 to 97.4 %. This config uses timm's `a1_in1k` weights, with
BatchNorm.

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
    config.model = ConfigDict({"name": "resnet50.a1_in1k", "pretrained": True, "image_size": 224, "dtype": "bfloat16"})
    config.augment = ConfigDict({"crop": "resized", "crop_scale": (0.5, 1.0), "flip": 0.5, "mixup": 0.1})
    config.optimizer = ConfigDict({"name": "sgd", "learning_rate": 0.003, "momentum": 0.9})
    config.schedule = ConfigDict({"name": "step", "milestones": (0.3, 0.6, 0.9), "warmup_steps": 500})
    config.train = ConfigDict({"steps": 10_000, "evaluate_every": 5.0})
    return config
