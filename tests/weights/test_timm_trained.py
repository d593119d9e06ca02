"""A small model trained with timm in PyTorch makes the same predictions in jaxvision, on 10,000 test images."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re

import jax
import numpy as np
import pytest
from PIL import Image
from support.reference import import_timm

import jaxvision
from jaxvision import cli
from jaxvision.data.source import open_source

SIZE = 64  # both libraries resize the images of CIFAR-10 to 67 pixels and crop them, each with its own transform


def read(source):
    """Returns the images of a source, opened by Pillow, and their labels."""
    examples = source.__getitems__(range(len(source)))
    images = [Image.open(io.BytesIO(example["image"])).convert("RGB") for example in examples]
    return images, np.array([example["label"] for example in examples])


def train(timm, name, images, labels, *, epochs, batch_size=128, learning_rate=2e-3):
    """Returns timm's model, its moving average and its optimizer after a short training on one thread."""
    import torch
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **({"img_size": SIZE} if "vit" in name else {})).train()
    average = ModelEmaV3(model, decay=0.99)
    config = timm.data.resolve_data_config({"img_size": SIZE}, model=model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    y = torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    order = torch.cat([torch.randperm(len(x)) for _ in range(math.ceil(epochs))])[: int(epochs * len(x))]
    steps = len(order) // batch_size
    for step, rows in enumerate(order[: steps * batch_size].view(steps, batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
        flipped = torch.where((torch.rand(batch_size) < 0.5).view(-1, 1, 1, 1), x[rows].flip(3), x[rows]).float() / 255
        resized = torch.nn.functional.interpolate(flipped, size=SIZE, mode=config["interpolation"], antialias=True)
        loss = torch.nn.functional.cross_entropy(model((resized - mean) / std), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
    return model, average, optimizer


def save(name, model, average, optimizer, folder):
    """Returns {kind: file} for each form of timm's checkpoints."""
    import torch
    from safetensors.torch import save_file
    from timm.utils import CheckpointSaver

    args = argparse.Namespace(model=name, img_size=SIZE)
    CheckpointSaver(model, optimizer, args, model_ema=average, checkpoint_dir=str(folder)).save_checkpoint(0, metric=1)
    torch.save({"state_dict": {f"module.{k}": x for k, x in model.state_dict().items()}}, folder / "ddp.pth")
    save_file(model.state_dict(), folder / "model.safetensors")
    return {
        "train.py's file with its average": folder / "last.pth.tar",
        "state_dict of DDP": folder / "ddp.pth",
        "safetensors": folder / "model.safetensors",
    }


def timm_logits(timm, name, path, images):
    """Returns the logits of timm, with its own model, loader of weights and transform."""
    import torch

    size = {"img_size": SIZE} if "vit" in name else {}
    model = timm.create_model(name, num_classes=10, checkpoint_path=str(path), **size).eval()
    config = timm.data.resolve_data_config({"img_size": SIZE}, model=model)
    transform = timm.data.create_transform(**config)
    with torch.inference_mode():
        parts = [torch.stack([transform(p) for p in images[i : i + 500]]) for i in range(0, len(images), 500)]
        return torch.cat([model(part) for part in parts]).numpy()


def our_logits(name, path, images):
    """Returns the logits of jaxvision, by its public functions."""
    classifier = jaxvision.load_classifier(name, checkpoint_path=path, image_size=SIZE)
    model = jaxvision.create_model(name, checkpoint_path=path, image_size=SIZE)
    forward = jax.jit(lambda model, images: model(images))
    parts = [forward(model, classifier.images(images[i : i + 500])) for i in range(0, len(images), 500)]
    return np.concatenate([np.asarray(part) for part in parts])


def evaluated(name, path, data_dir, folder, labels, capsys):
    """Returns top-1 and the predicted classes of ``jaxvision evaluate``, which writes a table of its mistakes."""
    capsys.readouterr()
    command = ["evaluate", "-m", name, "--checkpoint", str(path), "--image-size", str(SIZE), "--data", "tfds", "--json"]
    options = ["--option", "dataset=cifar10", "--option", f"data_dir={data_dir}", "--batch-size", "250"]
    cli.main([*command, *options, "--report", str(folder)])
    top1 = json.loads(capsys.readouterr().out)["top1"]
    predictions = labels.copy()
    with (folder / "mistakes.csv").open() as file:
        for row in csv.DictReader(file):
            predictions[int(re.search(r"\[(\d+)\]$", row["image"])[1])] = int(row["predicted"].removeprefix("class "))
    return top1, predictions


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timm
@pytest.mark.parametrize(("name", "epochs"), [("test_resnet", 2.0), ("test_vit", 4.0), ("test_efficientnet", 2.0)])
def test_a_checkpoint_of_timm_makes_the_same_predictions(name, epochs, shared, tmp_path, capsys):
    timm = import_timm()
    import torch

    data_dir = shared / "data" / "tfds"
    splits = open_source("tfds", dataset="cifar10", data_dir=str(data_dir))
    images, labels = read(splits.split("test"))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        files = save(name, *train(timm, name, *read(splits.split("train")), epochs=epochs), tmp_path)
        theirs = {what: timm_logits(timm, name, path, images) for what, path in files.items()}
    finally:
        torch.set_num_threads(threads)
    for what, path in files.items():
        top1, predictions = evaluated(name, path, data_dir, tmp_path / what, labels, capsys)
        ours, wanted = our_logits(name, path, images), theirs[what]
        gaps = np.diff(np.sort(wanted)[:, -2:])[:, 0]
        with capsys.disabled():
            print(
                f"\n{name}, {what}: {(wanted.argmax(1) == labels).sum()} of {len(labels)} right in timm, "
                f"{(predictions == labels).sum()} here; {(predictions != wanted.argmax(1)).sum()} predictions differ; "
                f"logits differ by at most {np.abs(ours - wanted).max() / wanted.std():.1e} of their standard "
                f"deviation; the closest call was {gaps.min() / wanted.std():.1e} of it"
            )
        assert (wanted.argmax(1) == labels).mean() > 0.45  # the model has learned: chance is 0.1
        np.testing.assert_array_equal(predictions, wanted.argmax(1), what)
        np.testing.assert_array_equal(ours.argmax(1), predictions, what)
        assert round(top1 * len(labels)) == (wanted.argmax(1) == labels).sum()
        assert np.abs(ours - wanted).max() <= 1e-4 * wanted.std()
    # The moving average makes other predictions than the last step, so the first file shows whether it is loaded.
    first, second, third = theirs.values()
    assert (first.argmax(1) != second.argmax(1)).any()
    np.testing.assert_array_equal(second, third)
