"""ResNet-50 on ImageNet-1k from scratch, 90 epochs.

    python -m jaxvision.main --config configs/resnet50_imagenet.py --workdir runs/resnet50_imagenet

Recipe: Goyal et al., "Accurate, Large Minibatch SGD", https://arxiv.org/abs/1706.02677: SGD with Nesterov momentum 0.9,
learning rate 0.1 per 256 images of the batch, 5 epochs of warm-up, weight decay 1e-4, and a last scale of 0 in each
block at initialization. Cosine decay and label smoothing 0.1 are from He et al., https://arxiv.org/abs/1812.01187.
Published by Goyal et al.: 76.3 %.

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
    config.model = ConfigDict({"name": "resnet50", "image_size": 224, "dtype": "bfloat16"})
    config.augment = ConfigDict({"crop": "resized", "flip": 0.5})
    config.loss = ConfigDict({"label_smoothing": 0.1})
    config.optimizer = ConfigDict(
        {"name": "sgd", "learning_rate": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    )
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 5.0})
    config.train = ConfigDict({"epochs": 90.0})
    return config
