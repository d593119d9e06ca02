"""The console command ``jaxvision``: list, info, plan, predict, attention, evaluate, convert, doctor.

Training has its own command, ``python -m jaxvision.main --config FILE`` (also ``jaxvision train``).
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxvision.errors import UserError, unknown_name_error

# Everything that needs JAX is imported where it is used: `jaxvision --help` answers at once.


_SHOWN = 448  # pixels of the side of a picture that is made to be looked at, at least


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are UserErrors: one line, exit status 2, like everyone else's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    0: done. 1: a plan that does not fit, or something is wrong with the machine. 2: a user's mistake. 130: interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        from jaxvision.main import run_and_exit

        sys.argv[1:] = argv[1:]
        run_and_exit()
    try:
        arguments, rest = _parser().parse_known_args(argv)
        # A plan takes --config.KEY=VALUE, and --config.KEY VALUE, which `jaxvision.main.parse` will look at.
        bad = [x for x in rest if arguments.command != "plan" or (x[:1] == "-" and not x.startswith("--config."))]
        if bad:
            raise UserError(f"unrecognized arguments: {' '.join(bad)}; see jaxvision {arguments.command} --help")
        arguments.overrides = rest
        return arguments.run(arguments) or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # jaxvision list | head
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxvision",
        description="ResNet, Vision Transformer and EfficientNet on JAX, with timm's weights.",
        epilog="Train with: python -m jaxvision.main --config configs/quickstart.py:vit --workdir runs/quickstart",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")

    command = commands.add_parser("list", help="a table of models to pick one from")
    command.add_argument("pattern", nargs="?", default="*", help="shell pattern, such as 'vit_*'")
    command.add_argument("--family", help="resnet, resnetv2, vit or efficientnet")
    command.add_argument(
        "--pretrained",
        action="store_true",
        help="a row for each weight tag (name.tag); default: one for each architecture, about its default weights",
    )
    command.add_argument("--license", help="of the weights: a shell pattern, such as apache-2.0 or 'cc-*'")
    command.add_argument("--max-params", metavar="N", help="most parameters, such as 30M")
    command.add_argument(
        "--max-macs",
        metavar="N",
        help="most multiply-adds for an image, such as 4G: those that timm publishes, or counted where it does not",
    )
    command.add_argument("--sort", default="name", metavar="BY", help="name, top1, params or macs (default: name)")
    command.add_argument("--json", action="store_true", help="print JSON, one list of objects")
    command.set_defaults(run=_list)

    command = commands.add_parser("info", help="parameters, multiply-adds, activations and bytes by stage")
    command.add_argument("name", help="such as resnet50")
    command.add_argument("--image-size", type=int, help="side in pixels (default: the model's own)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "plan", help="what a config's train step takes of a TPU pod or a GPU, before renting it"
    )
    command.add_argument("--config", required=True, metavar="FILE", help="and --config.KEY=VALUE, as in training")
    command.add_argument(
        "--topology",
        metavar="TPU[,TPU...]",
        help="such as v5e:2x4, v5e:16x16, v6e:1x1 or v5p:4x4x4; of several, a table: the batch is the first one's, and "
        "the others have as many images on a chip",
    )
    command.add_argument("--device", metavar="GPU", help="such as a100-40g, h100 or rtx4090; or a memory, such as 8GB")
    command.add_argument("--num-classes", type=int, default=1000, help="of the data (default: 1000)")
    command.add_argument("--in-channels", type=int, default=3, help="of the pictures (default: 3)")
    command.add_argument(
        "--stored",
        type=int,
        metavar="PIXELS",
        help="side of small pictures that are kept in memory and cropped on the device (default: workers crop them)",
    )
    command.add_argument(
        "--no-search",
        action="store_true",
        help="only this batch on this mesh; do not look for a better mesh, nor for the largest batch",
    )
    command.add_argument(
        "--quick", action="store_true", help="the TPU compiler's least effort: much faster for a convnet, and rough"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_plan)

    command = commands.add_parser("predict", help="labels and probabilities for pictures")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="picture files, or folders of them")
    _add_model_arguments(command)
    command.add_argument("--top", type=int, default=5, help="labels for each picture (default: 5)")
    command.add_argument("--json", action="store_true", help="print JSON, one object a line")
    command.set_defaults(run=_predict)

    command = commands.add_parser("attention", help="a PNG of where the model looks")
    command.add_argument("image", metavar="IMAGE", help="a picture file")
    _add_model_arguments(command)
    command.add_argument(
        "--layer",
        type=int,
        help="of a ViT: attention of this layer's class token, -1 is the last "
        "(default: attention rollout over all layers; Grad-CAM for a convnet)",
    )
    command.add_argument("--label", help="of a convnet: explain this class (default: the predicted one)")
    command.add_argument("--output", "-o", help="the PNG to write (default: IMAGE's name with -attention.png, here)")
    command.set_defaults(run=_attention)

    command = commands.add_parser("evaluate", help="accuracy, loss, calibration and mistakes on a data set")
    _add_model_arguments(command)
    command.add_argument(
        "--data",
        required=True,
        metavar="FOLDER|SOURCE",
        help="a folder with one folder for each class, or a source such as digits or tfds",
    )
    command.add_argument("--split", default="test", help="part of the data (default: test)")
    command.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the source, such as dataset=cifar10 or data_dir=DIRECTORY; may be repeated",
    )
    command.add_argument("--batch-size", type=int, default=32, help="default: 32")
    command.add_argument("--report", metavar="DIRECTORY", help="write report.html here")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("convert", help="a run, or a weight file, into a folder or file that timm reads")
    command.add_argument("source", metavar="WORKDIR|NAME", help="a finished run, its export folder, or a model's name")
    command.add_argument(
        "output",
        metavar="OUTPUT",
        help="a folder (model.safetensors and config.json), or a file that ends in .safetensors",
    )
    command.add_argument("--to", default="timm", choices=["timm"], help="what shall read it (default: timm)")
    command.add_argument("--checkpoint", metavar="FILE", help="timm's weight file for a NAME (default: the hub)")
    command.add_argument("--num-classes", type=int, help="of the head (default: the weights' own)")
    command.add_argument("--image-size", type=int, help="side in pixels; a ViT's position grid is resampled to it")
    command.add_argument("--in-channels", type=int, help="channels of the image")
    command.set_defaults(run=_convert)

    command = commands.add_parser("doctor", help="what is wrong with this machine, and the command that mends it")
    command.add_argument("--workdir", default="runs", help="where runs go (default: runs)")
    command.add_argument("--json", action="store_true", help="print JSON: facts, and findings")
    command.set_defaults(run=_doctor)
    return parser


def _add_model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        "-m",
        required=True,
        metavar="NAME|FOLDER",
        help="a name such as resnet50.a1_in1k (weights from the hub), or the workdir of a run",
    )
    command.add_argument("--checkpoint", metavar="FILE", help="timm's weight file for a NAME, instead of the hub")
    command.add_argument("--num-classes", type=int, help="of the head in --checkpoint (default: the name's own)")
    command.add_argument("--image-size", type=int, help="side in pixels (default: the weights' own)")


def _classifier(arguments: argparse.Namespace) -> Any:
    from jaxvision.classifier import load_classifier

    options = {
        key: value
        for key in ("num_classes", "image_size", "in_channels")
        if (value := getattr(arguments, key, None)) is not None
    }
    return load_classifier(
        getattr(arguments, "model", None) or arguments.source, checkpoint_path=arguments.checkpoint, **options
    )


def _list(arguments: argparse.Namespace) -> None:
    from jaxvision.weights import catalog, listing

    names = listing.list_models(
        arguments.pattern,
        family=arguments.family,
        pretrained=arguments.pretrained,
        license=arguments.license,
        max_params=arguments.max_params,
        max_macs=arguments.max_macs,
        sort=arguments.sort,
    )
    rows = [
        {
            "name": name,
            "parameters": entry.params,
            "multiply_adds": entry.macs.get(entry.rated_size),
            "image_size": entry.rated_size,
            "top1": entry.top1,
            "top5": entry.top5,
            "license": entry.license if entry.published else None,
            "weights": entry.name if entry.published else None,
        }
        for name in names
        for entry in [catalog.lookup(name)]
    ]
    if arguments.json:
        print(json.dumps(rows))
    elif rows:
        print(_table(rows))
    else:
        raise UserError(f"no model matches {arguments.pattern!r} and what else was asked; `jaxvision list` shows all")


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows of `_list` as text: a line for each, names first."""
    width = max(len(row["name"]) for row in rows)

    def number(value: float | None, unit: float, digits: int) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    lines = [f"{'name':{width}} {'params M':>9} {'MACs G':>8} {'size':>5} {'top-1':>7} {'top-5':>7}  license"]
    for row in rows:
        columns = [
            f"{row['name']:{width}} {number(row['parameters'], 1e6, 2):>9} {number(row['multiply_adds'], 1e9, 2):>8}",
            f"{row['image_size']:5} {number(row['top1'], 1, 3):>7} {number(row['top5'], 1, 3):>7} ",
            row["license"] or ("" if row["weights"] else "no weights"),
        ]
        lines.append(" ".join(columns).rstrip())
    return "\n".join(lines)


def _info(arguments: argparse.Namespace) -> None:
    from jaxvision.analysis.cost import model_info

    info = model_info(arguments.name, image_size=arguments.image_size)
    print(json.dumps(dataclasses.asdict(info)) if arguments.json else info)


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.topology is not None:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the TPUs need not be there, and what is there must not be taken
    from jaxvision import main as training
    from jaxvision import run

    config, _, _ = training.parse([f"--config={arguments.config}", *arguments.overrides])
    assert config is not None
    options = {
        "num_classes": arguments.num_classes,
        "channels": arguments.in_channels,
        "stored": arguments.stored,
        "compare": not arguments.no_search,
        "quick": arguments.quick,
        "log": lambda text: print(text, file=sys.stderr),
    }
    topologies = (arguments.topology or "").split(",")
    if len(topologies) > 1:
        answers = run.plan_scaling(config, topologies, **options)
        if arguments.json:
            print(_json({name: answer.as_dict() for name, answer in answers.items()}))
        else:
            _print_scaling(config.model.name, answers)
        return 0 if all(answer.plans[0].fits for answer in answers.values()) else 1
    answer = run.plan(
        config, topology=arguments.topology, device=arguments.device, search=not arguments.no_search, **options
    )
    if arguments.json:
        print(_json(answer.as_dict()))
    else:
        _print_plan(config.model.name, answer)
    return 0 if answer.plans[0].fits else 1


def _json(value: Any) -> str:
    """Returns JSON, in which infinity is null."""
    return re.sub(r"\bInfinity\b", "null", json.dumps(value))


def _grid(title: str, *columns: str) -> Any:
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left")
    return made


def _milliseconds(seconds: float | None) -> str:
    return f"{1000 * seconds:.2f}" if seconds else ""


def _print_scaling(name: str, answers: dict[str, Any]) -> None:
    from rich.console import Console

    from jaxvision.parallel.mesh import mesh_text
    from jaxvision.plan import GIB

    console = Console(highlight=False, soft_wrap=True, width=160)  # else a file would get 80, and parts of words
    columns = "images", "GiB", "compute, ms", "memory, ms", "links, ms", "messages", "efficiency"
    rows = _grid(f"{name}: a step, by chips", "topology", "mesh", *columns)
    for topology, answer in answers.items():
        for plan in answer.plans:
            mesh, seconds = mesh_text(plan.mesh, zero1=plan.zero1), plan.seconds
            parts = [_milliseconds(seconds.get(part)) for part in ("compute", "memory", "interconnect")]
            count = str(sum(row.count for row in plan.collectives)) if seconds else "does not fit"
            share = "{:.0%} to {:.0%}".format(*plan.efficiency) if plan.efficiency else ""
            rounded = "" if plan.batch_size == answer.asked else f" (for {answer.asked:,})"
            rows.add_row(
                topology, mesh, f"{plan.batch_size:,}{rounded}", f"{plan.total / GIB:.2f}", *parts, count, share
            )
    console.print(rows)
    console.print(
        "efficiency: the share of a step that is not spent on messages, if the work waits for all or for none"
    )
    for line in next(iter(answers.values())).assumptions:
        console.print(f"- {line}")


def _print_plan(name: str, answer: Any) -> None:
    from rich.console import Console

    from jaxvision.parallel.mesh import mesh_text
    from jaxvision.plan import GIB

    console, plan = Console(highlight=False, soft_wrap=True), answer.plans[0]
    devices, mesh = math.prod(plan.mesh.values()), mesh_text(plan.mesh, zero1=plan.zero1)
    console.print(f"{name}: {plan.batch_size:,} images a step on {devices} x {plan.chip.name} ({mesh})")
    if plan.batch_size != answer.asked:
        console.print(f"the config's batch, {answer.asked:,}, is not divided by these devices: the next one that is")

    rows = _grid("\nbytes on one device", "", "GiB")
    for kind, n in plan.bytes.items():
        if n:
            rows.add_row(kind, f"{n / GIB:.3f}")
    rows.add_row("total", f"{plan.total / GIB:.3f}")
    rows.add_row("there is", f"{plan.chip.memory / GIB:.3f}")
    console.print(rows)
    console.print("it fits" if plan.fits else "it does NOT fit")
    if not plan.fits and len(answer.plans) == 1:
        console.print(
            "less is taken by a smaller --config.data.batch_size, by --config.train.accumulate=4 (microbatches), by "
            "--config.train.remat=nothing"
            + (
                ", by --config.mesh.data=1 --config.mesh.fsdp=-1; without --no-search meshes are compared"
                * (devices > 1)
            )
        )
    if answer.largest is not None:
        tried = ", ".join(f"{batch:,}: {n / GIB:.2f} GiB" for batch, n in sorted(answer.tried.items()))
        console.print(f"largest batch that fits: {answer.largest:,}, of {len(answer.tried)} compiled ({tried})")

    if plan.collectives:
        rows = _grid("\nmessages in a step, from one device", "kind", "axis", "count", "array MiB", "sent MiB")
        for row in plan.collectives:
            sizes = f"{row.bytes / 2**20:.2f}", f"{row.sent / 2**20:.2f}"
            rows.add_row(row.kind, row.axis, str(row.count), *sizes)
        console.print(rows)
    if plan.seconds:
        rows = _grid("\na step at the chip's peak", "", "amount on one device", "ms")
        amounts = {
            "compute": f"{plan.flops / 1e12:.3f} TFLOP",
            "memory": f"{plan.accessed / GIB:.2f} GiB",
            "interconnect": f"{sum(row.sent for row in plan.collectives) / GIB:.3f} GiB",
        }
        for part, seconds in plan.seconds.items():
            rows.add_row(part, amounts[part], _milliseconds(seconds))
        console.print(rows)
        bound = max(plan.seconds, key=plan.seconds.get)
        rate = plan.batch_size / plan.step_seconds
        console.print(f"no faster than {1000 * plan.step_seconds:.2f} ms a step, {rate:,.0f} images/s, by {bound}")
        if plan.collectives:
            console.print(f"{_milliseconds(plan.in_turn_seconds)} ms where the work waits for every message")
        console.print(f"MFU at most {plan.mfu:.0%}")
        hourly = f"{3600 * rate / 1e6:,.1f} million images an hour"
        console.print(f"{hourly}, at most: images of the data x epochs, by that, are the hours to rent, at least")
    if len(answer.plans) > 1:
        rows = _grid("\nmeshes, the best first", "mesh", "GiB", "ms", "ms if the work waits", "fits")
        for other in answer.plans:
            times = _milliseconds(other.step_seconds), _milliseconds(other.in_turn_seconds)
            words = mesh_text(other.mesh, zero1=other.zero1)
            rows.add_row(words, f"{other.total / GIB:.3f}", *times, "yes" if other.fits else "no")
        console.print(rows)
        console.print(f"the first is chosen by {plan.flags}")
    console.print(f"\nassumed ({plan.compile_seconds:.0f} s of compilation)")
    for line in answer.assumptions:
        console.print(f"- {line}")


def _predict(arguments: argparse.Namespace) -> int:
    import jax
    import numpy as np

    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(_warn)
    files = list(_pictures(arguments.images))
    classifier = _classifier(arguments)
    if not classifier.classes:
        raise UserError(f"{arguments.model} has no head, so there is nothing to predict; its features: create_model")
    forward = jax.jit(lambda model, images: jax.nn.softmax(model(images).astype("float32")))
    failed = 0
    for file in files:
        try:
            images = classifier.images([file])
        except UserError as e:
            # One bad picture among many: the others still get their answer, the status says that not all did.
            print(f"error: {e}", file=sys.stderr)
            failed += 1
            continue
        probabilities = np.asarray(forward(classifier.model, images))[0]
        order = np.argsort(-probabilities)[: max(arguments.top, 1)]
        top = [{"label": classifier.classes[i], "index": int(i), "probability": float(probabilities[i])} for i in order]
        if arguments.json:
            print(json.dumps({"image": str(file), "predictions": top}, ensure_ascii=False), flush=True)
        else:
            print(file)
            for row in top:
                print(f"  {row['probability']:7.2%}  {row['label']}", flush=True)
    return 2 if failed else 0


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _pictures(paths: Iterable[str]) -> Iterable[Path]:
    from jaxvision.data.folder import EXTENSIONS

    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
            if not found:
                raise UserError(f"no pictures in {path}")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise UserError(f"no such picture: {path}")


def _attention(arguments: argparse.Namespace) -> None:
    import jax
    import numpy as np
    from PIL import Image

    from jaxvision.analysis.attention import class_attention
    from jaxvision.analysis.saliency import explain, overlay
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(_warn)
    files = list(_pictures([arguments.image]))
    if len(files) != 1:
        raise UserError(f"attention takes one picture, and {arguments.image} holds {len(files)}")
    output = Path(arguments.output or f"{files[0].stem}-attention.png")
    classifier = _classifier(arguments)
    model = classifier.model
    images = classifier.images([files[0]])
    pixels = classifier.pixels(files[0], times=math.ceil(_SHOWN / images.shape[1]))
    if arguments.layer is not None:
        if model.family != "vit":
            raise UserError(f"--layer is for a ViT; {model.architecture} is explained by Grad-CAM, which takes --label")
        heat = class_attention(model, images, layer_idx=arguments.layer)
        method = f"attention of layer {arguments.layer}"
    elif model.family == "vit":
        if arguments.label is not None:
            raise UserError("--label is for a convnet; the attention of a ViT knows no class")
        heat, method = jax.jit(explain)(model, images), "attention rollout"
    else:
        classes = None
        if arguments.label is not None:
            if arguments.label not in classifier.classes:
                raise unknown_name_error("class", arguments.label, classifier.classes)
            classes = np.array([classifier.classes.index(arguments.label)])
        probabilities = np.asarray(jax.jit(lambda model, images: jax.nn.softmax(model(images)))(model, images))[0]
        chosen = int(probabilities.argmax() if classes is None else classes[0])
        heat = explain(model, images, classes=np.array([chosen]))
        method = f"Grad-CAM for {classifier.classes[chosen]!r} ({probabilities[chosen]:.1%})"
    heat = np.asarray(heat)[0]
    picture = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
    try:
        heated = overlay(picture, heat / max(heat.max(), 1e-12))
        Image.fromarray(np.concatenate([picture, heated], axis=1)).save(output)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write {output}: {e}") from e
    print(f"{output}: {method}, {arguments.model} on {files[0].name}")
    if min(heat.shape) < 3:
        grid = f"{heat.shape[0]} x {heat.shape[1]}"
        _warn(f"at {images.shape[1]} pixels this model's map is {grid}: it tells little of where")


def _evaluate(arguments: argparse.Namespace) -> None:
    from jaxvision.eval.evaluate import evaluate
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(_warn)
    options = {}
    for option in arguments.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option takes KEY=VALUE, got {option!r}")
        if key in ("classifier", "data", "split", "batch_size", "workers", "report_dir", "quiet", "max_corrupt"):
            raise UserError(f"--option is for what the source takes; {key!r} has a flag of its own, or none")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value  # words
    result = evaluate(
        _classifier(arguments),
        arguments.data,
        split=arguments.split,
        batch_size=arguments.batch_size,
        report_dir=arguments.report,
        quiet=arguments.json,
        **options,
    )
    if arguments.json:
        print(json.dumps(result))


def _convert(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    from jaxvision.classifier import save_classifier
    from jaxvision.weights.timm import save_timm

    output = Path(arguments.output)
    if output.suffix in (".pth", ".pt", ".bin", ".ckpt", ".h5", ".npz", ".onnx"):
        raise UserError(f"{output}: name a folder, for config.json and model.safetensors, or a file *.safetensors")
    if (output / "metrics.jsonl").exists() or (output / "checkpoints").exists():
        raise UserError(f"{output} is the workdir of a run, whose config.json would be lost; name another folder")
    classifier = _classifier(arguments)
    if output.suffix == ".safetensors":
        save_timm(classifier.model, output)
    else:
        save_classifier(output, classifier)
    print(f"{output}: {classifier.model.architecture}, {classifier.model.num_classes} classes, as timm reads it")


def _doctor(arguments: argparse.Namespace) -> int:
    from jaxvision import doctor

    facts = doctor.examine(arguments.workdir)
    found = doctor.findings(facts)
    if arguments.json:
        print(
            json.dumps({"facts": dataclasses.asdict(facts), "findings": [dataclasses.asdict(each) for each in found]})
        )
        return 1 if found else 0
    for name, value in doctor.summary(facts).items():
        print(f"{name:14} {value}")
    print()
    for i, finding in enumerate(found, 1):
        print(f"{i}. {finding.problem}\n   -> {finding.mend}")
    print("nothing is wrong" if not found else "\nMend the first, and look again.")
    return 1 if found else 0


def run_and_exit() -> None:
    """Ends the process with the status of `main`."""
    from jaxvision import main as training

    training.run_and_exit(main)


if __name__ == "__main__":
    run_and_exit()
