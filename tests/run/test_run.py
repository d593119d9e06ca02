"""run.py and main.py: a config in, a result out; what users get wrong."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from support.paths import ROOT

from jaxvision import main as command
from jaxvision import run
from jaxvision.classifier import load_classifier
from jaxvision.errors import UserError
from jaxvision.eval import evaluate as evaluation
from jaxvision.eval.evaluate import evaluate
from jaxvision.run import program, training, watch
from jaxvision.weights import catalog
from jaxvision.weights.timm import save_timm

CONFIGS = [Path(name).stem for name in command.packaged()]
TINY = {"resnet": "test_resnet", "vit": "test_vit", "efficientnet": "test_efficientnet"}


def start(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Runs the command line; returns exit status, standard output and standard error."""
    status = command.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs a command line that must end in one line and status 2, and returns the line."""
    status, _, err = start(capsys, *arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def quick(family: str = "resnet", **sections) -> ConfigDict:
    """The quickstart, on so few steps that it takes seconds."""
    config = command.load(f"configs/quickstart.py:{family}")
    config.train.steps = 6
    config.data.batch_size = 16
    config.mesh = ConfigDict({"data": 1})  # eight fake devices on two cores only cost time
    for name, keys in sections.items():
        if name not in config:
            config[name] = ConfigDict()
        config[name].update(keys)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with a finished run that learned something."""
    workdir = tmp_path_factory.mktemp("finished")
    config = quick("resnet", train={"steps": 60, "evaluate_every": 1.0}, data={"batch_size": 64})
    result = run.train(config, workdir)
    # Digits at 60 steps: far above the 10 % of chance, whatever the platform's rounding.
    assert result["top1"] > 0.5
    assert result["count"] == 359
    return workdir


def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {
        "config.json", "checkpoints", "metrics.jsonl", "tensorboard", "report.html", "mistakes.csv", "export",
        ".lock", ".saved",
    }  # fmt: skip
    page = (finished / "report.html").read_text()
    assert "test_resnet" in page
    assert "Where the model looked is not shown: at 32 pixels its last map is 1 x 1." in page
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"train", "test"} == {line["split"] for line in lines}
    assert {"loss", "grad_norm", "learning_rate", "accuracy", "images_per_second"} <= set(lines[0])


def test_mistakes_are_listed_the_most_confident_first(finished: Path) -> None:
    with (finished / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines() if '"test"' in x][-1]
    assert len(rows) == round(359 * (1 - last["top1"])) > 0
    assert all(row["true"] != row["predicted"] for row in rows)
    confidences = [float(row["confidence"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)


def test_classes_are_compared_by_name_as_well(finished: Path, capsys: pytest.CaptureFixture) -> None:
    classifier = load_classifier(finished)
    backwards = replace(classifier, classes=classifier.classes[::-1])
    with pytest.raises(UserError, match="numbers the model's classes in another order: 0 is '0' in the data, '9'"):
        evaluate(backwards, "digits", quiet=True)
    evaluate(replace(classifier, classes=tuple(f"digit {i}" for i in range(10))), "digits")
    assert "their names differ: 0 is '0' in the data, 'digit 0' in the model" in " ".join(
        capsys.readouterr().out.split()
    )


def test_imagenets_classes_come_by_name_or_by_wordnets_identifier() -> None:
    names = catalog.class_names()
    assert evaluation._spelled(names, {"n02123045", "n01440764"}) == catalog.synsets()
    assert evaluation._spelled(names, {"tench"}) == names
    assert evaluation._spelled(("a", "b"), {"n02123045"}) == ("a", "b")


def test_the_exported_model_is_the_one_that_was_evaluated(finished: Path) -> None:
    classifier = load_classifier(finished)
    assert classifier.classes == tuple(str(i) for i in range(10))
    last = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines() if '"test"' in x][-1]
    again = evaluate(classifier, "digits", quiet=True)
    assert again["top1"] == last["top1"]
    assert again["loss"] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.timm
def test_timm_reads_the_export(finished: Path) -> None:
    import torch
    from support.reference import import_timm

    model = import_timm().create_model(f"local-dir:{finished / 'export'}", pretrained=True).eval()
    classifier = load_classifier(finished)
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 1)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(classifier.model(images), theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("family", ["vit", "efficientnet"])
def test_every_family_runs(family: str, tmp_path: Path) -> None:
    result = run.train(quick(family), tmp_path)
    assert np.isfinite(result["loss"])
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_started_again_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"train": {"steps": 8, "evaluate_every": 0.044, "ema_decay": 0.9}, "augment": {"crop_padding": 1}}
    with jax.log_compiles():
        whole = run.train(quick("resnet", **options), tmp_path / "whole")
    compiled = [re.match(r"Compiling jit\((train_step|eval_step)\)", record.getMessage()) for record in caplog.records]
    # One of each, for eight steps and two evaluations.
    assert sorted(found[1] for found in compiled if found) == ["eval_step", "train_step"]
    assert (tmp_path / "whole" / "metrics.jsonl").read_text().count('"split": "test"') == 2

    real, calls = program.make_train_step, 0

    def stops(*args, **kwargs):
        step = real(*args, **kwargs)

        def counted(state, batch):
            nonlocal calls
            calls += 1
            if calls == 6:
                raise KeyboardInterrupt
            return step(state, batch)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(program, "make_train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run.train(quick("resnet", **options), tmp_path / "parts")
    parts = run.train(quick("resnet", **options), tmp_path / "parts")
    assert parts == whole
    a, b = ((tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert a == b
    steps = [json.loads(x)["step"] for x in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_patience_counts_across_a_restart(tmp_path: Path) -> None:
    rows = [("validation", x) for x in (0.5, 0.7, 0.7, 0.6)] + [("test", 0.9)]
    lines = [json.dumps({"step": i, "split": split, "top1": top1}) for i, (split, top1) in enumerate(rows)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert training._standing(tmp_path, "validation", before=9) == (0.7, 2)  # as good as before is no better
    again = training._standing(tmp_path, "validation", before=3)  # an evaluation that is made again counts once
    assert again == (0.7, 1)
    assert training._standing(tmp_path / "new", "validation", before=9) == (None, 0)


def test_a_run_goes_on_where_its_data_are_and_only_with_those(tmp_path: Path) -> None:
    """The folder may move; that pictures came or went would change which of them each step sees."""
    for name, color in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        (tmp_path / "here" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20 + i, 24), color).save(tmp_path / "here" / name / f"{i}.jpg")

    def config(where: str, **data: Any) -> ConfigDict:
        config = command.load("configs/folder.py:test_resnet")
        config.source.data_dir = str(tmp_path / where)
        config.model.pretrained, config.model.image_size = False, 32
        config.data = ConfigDict({"batch_size": 8, "workers": 0, **data})
        config.train.update({"steps": 2, "evaluate_every": 1.0})
        config.mesh = ConfigDict({"data": 1})
        return config

    run.train(config("here"), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    run.train(config("there", max_corrupt=3), tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.memory_limit 2\.0 -> 0\.0"):  # decides who crops, and so the numbers
        run.train(config("there", memory_limit=0.0), tmp_path / "run")
    Image.new("RGB", (20, 24)).save(tmp_path / "there" / "red" / "one more.jpg")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(
        UserError, match=r"was begun with other training data: 20 images then, 20 now, or of other names"
    ):
        run.train(config("there"), tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_another_config_is_refused_and_the_difference_shown(finished: Path) -> None:
    before = (finished / "config.json").read_bytes()
    config = quick("resnet", train={"steps": 60}, data={"batch_size": 64}, optimizer={"learning_rate": 0.5})
    with pytest.raises(UserError, match=r"optimizer\.learning_rate .* -> 0\.5"):
        run.train(config, finished)
    assert (finished / "config.json").read_bytes() == before


def test_early_stop_and_validation_choose_the_best(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 4), ("test", 4)):
        for label, color in enumerate([(200, 30, 30), (30, 30, 200)]):
            folder = pictures / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(n):
                noise = rng.integers(0, 50, (40, 48, 3)) + np.array(color)
                Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    config = command.load("configs/folder.py:test_resnet")
    config.source.data_dir = str(pictures)
    config.mesh = ConfigDict({"data": 1})
    config.data.update({"batch_size": 8, "workers": 0})
    config.model.update({"pretrained": False, "image_size": 32})
    config.train.update({"epochs": 30.0, "patience": 3})
    config.optimizer.update({"learning_rate": 5e-3, "layer_decay": None})
    result = run.train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    watched = [line["top1"] for line in lines if line["split"] == "validation"]
    assert len(watched) < 30, "it never stopped early"
    assert result["count"] == 8  # the test part, once
    assert result["top1"] == 1.0  # red is not blue


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_complete_and_names_what_exists(name: str) -> None:
    config = run.complete(command.load(f"configs/{name}.py"))
    texts = run.explain_keys(config)
    for key in command.leaves(config):
        assert texts.get(key), f"{key} has no explanation"
    assert command.help_text(config)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["vit_base", "resnet50", "efficientnet_b3"])
def test_fine_tune_configs_run_from_a_local_timm_file(name: str, tmp_path: Path, shared: Path) -> None:
    """The recipe on real CIFAR-10, with the family's tiny model in the place of the big one."""
    family = {"vit_base": "vit", "resnet50": "resnet", "efficientnet_b3": "efficientnet"}[name]
    config = command.load(f"configs/{name}.py")
    from jaxvision.create import create_model

    save_timm(create_model(TINY[family], seed=5), tmp_path / "model.safetensors")
    config.model.update(
        {"name": TINY[family], "checkpoint_path": str(tmp_path / "model.safetensors"), "image_size": 32}
    )
    if family == "vit":
        config.model.update({"image_size": 160})
    config.source.update({"data_dir": str(shared / "data" / "tfds"), "train": "train[:256]", "test": "test[:100]"})
    config.data.batch_size = 16
    config.mesh = ConfigDict({"data": 1})
    config.train.update({"steps": 6})  # milestones at 0.3 of it come after the warm-up
    config.schedule.warmup_steps = 1
    result = run.train(config, tmp_path / "run")
    assert result["count"] == 100
    assert np.isfinite(result["loss"])


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_base", "resnet50", "efficientnet_b3"])
def test_fine_tune_configs_run_as_they_are(name: str, tmp_path: Path, shared: Path) -> None:
    """The whole models at their own size, a few steps of a few images."""
    config = command.load(f"configs/{name}.py")
    from jaxvision.create import create_model

    save_timm(create_model(config.model.name.partition(".")[0], seed=5), tmp_path / "model.safetensors")
    config.model.checkpoint_path = str(tmp_path / "model.safetensors")
    config.source.update({"data_dir": str(shared / "data" / "tfds"), "train": "train[:64]", "test": "test[:16]"})
    config.data.batch_size = 8
    config.mesh = ConfigDict({"data": 1})
    config.train.update({"steps": 6})  # milestones at 0.3 of it come after the warm-up
    config.schedule.warmup_steps = 1
    assert run.train(config, tmp_path / "run")["count"] == 16


def test_eight_devices_learn_what_one_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one = run.train(quick("resnet"), tmp_path / "one")
    assert "warning: the mesh takes 1 of 8 devices" in capsys.readouterr().out
    eight = run.train(quick("resnet", mesh={"data": 8}), tmp_path / "eight")
    text = capsys.readouterr().out
    assert "warning: the mesh" not in text
    held, whole = re.search(r"mesh +data=8; ([\d.]+) of ([\d.]+) MiB of state on each device", text).groups()
    assert float(held) == float(whole) > 4
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert eight["count"] == one["count"]


def test_lora_trains_and_exports_a_plain_model(tmp_path: Path) -> None:
    result = run.train(quick("vit", lora={"rank": 4}), tmp_path)
    assert np.isfinite(result["loss"])
    model = load_classifier(tmp_path).model
    assert not any("lora" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(model))


# --- what users get wrong: one line, status 2, nothing half-written ---


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = start(capsys, "--help")
    assert status == 0
    assert "configs/quickstart.py" in out
    status, out, _ = start(capsys, "--config", "configs/quickstart.py:vit", "--help")
    assert status == 0
    assert "--config.optimizer.layer_decay=None" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.learning_rte=1"], "did you mean optimizer.learning_rate"),
        (["--config.optimizer.learning_rate=1"], "did you mean optimizer.learning_rate"),
        (["--config.train.epochs=many"], "takes a float"),
        (["--config.model.name=resnet51"], "did you mean 'resnet50'"),
        (["--config.model.name=resnet50.a9_in1k"], "valid: a1_in1k"),
        (["--config.source.name=digit"], "did you mean 'digits'"),
        (["--config.model.image_size=17"], "not divisible by the patch size 4"),
        (["--config.model.patch_sise=4"], "did you mean model.patch_size"),
        (["--config.optimizer.name=adamv"], "did you mean 'adamw'"),
        (["--config.schedule.name=cosin"], "did you mean 'cosine'"),
        (["--config.augment.crop=resize"], "resized"),
        (["--config.model.checkpoint_path=nowhere.safetensors"], "nowhere.safetensors"),
        (["--config.data.batch_size=30"], "not divisible by 8 devices"),
        (["--config.mesh.model=2"], "unknown axis of config.mesh 'model' (valid: data, fsdp, tensor)"),
        (["--config.train.log_every=0"], "train.log_every is 1 or more"),
        (["--config.train.steps=-3"], "train.steps is 1 or more"),
        (["--config.train.epochs=0"], "train.epochs is a number above 0"),
        (["--config.train.ema_decay=1.5"], "train.ema_decay is between 0 and 1"),
        (["--config.seed=-1"], "config.seed is a whole number"),
        (["--config.data.eval_batch_size=-8"], "data.eval_batch_size is 1 or more"),
        (["--config.optimizer.learning_rate=0"], "optimizer.learning_rate is a number above 0"),
        (["--config.optimizer.learning_rate=None"], "the config needs optimizer.learning_rate"),
        (["--config.optimizer.weight_decay=-0.1"], "optimizer.weight_decay is 0 or more"),
        (["--config.data.workers=-1"], "data.workers is 0 or more"),
        (["--config.data.batch_size=0"], "the batch size is 1 or more"),
        (["--config.preprocess.std=(0.0,)"], "preprocess.std has one number for each channel"),
        (["--config.checkpoint.best=top2"], "did you mean 'top5' or 'top1'"),
        (["--config.model.freeze=layer1,layer2"], "layer1"),
        (["--confg=x"], "unknown flag"),
        (["--workdir=gs://bucket/run"], "mount the bucket"),
    ],
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, arguments: list[str], message: str
) -> None:
    workdir = tmp_path / "run"
    error = refused(capsys, "--config", "configs/quickstart.py:vit", "--workdir", str(workdir), *arguments)
    assert message in error
    assert not workdir.exists() or not any(workdir.iterdir()), "something was left behind"


def test_patterns_may_be_given_as_words() -> None:
    config, _, _ = command.parse(
        ["--config=configs/quickstart.py:vit", "--config.model.freeze=blocks\\.[01]\\.,patch_embed"]
    )
    assert config is not None
    assert config.model.freeze == ("blocks\\.[01]\\.", "patch_embed")


def test_a_flag_has_the_type_of_the_key_not_of_the_file() -> None:
    config, _, _ = command.parse(["--config=configs/quickstart.py:vit", "--config.train.epochs=0.5"])
    assert config is not None
    assert config.train.epochs == 0.5


def test_no_config_or_a_misspelled_one(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert "configs/quickstart.py" in refused(capsys)
    assert "did you mean configs/quickstart.py" in refused(capsys, "--config", "configs/quikstart.py")
    assert "expected one of vit" in refused(capsys, "--config", "configs/quickstart.py:vti")
    assert "--config is a Python file with get_config(), got" in refused(capsys, "--config", str(ROOT / "README.md"))
    empty = tmp_path / "empty.py"
    empty.touch()
    assert f"{empty} has no function get_config()" in refused(capsys, "--config", str(empty))


@pytest.mark.parametrize("saved", [(), (8,), (8, 16)])
def test_ctrl_c_tells_what_is_saved(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: tuple[int, ...]
) -> None:
    for step in saved:
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "checksums.json").touch()
    (tmp_path / "checkpoints" / "24.orbax-checkpoint-tmp").mkdir(parents=True)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert command.main(["--config", "configs/quickstart.py:vit", "--workdir", str(tmp_path)]) == 130
    goes_on = f"goes on from step {saved[-1]}, which is saved" if saved else "nothing was saved yet"
    assert goes_on in capsys.readouterr().err


def test_a_misspelled_key_in_a_config_file(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    text = Path(command._configs_folder() / "quickstart.py").read_text()
    for old, new, message in [
        ('"weight_decay"', '"weight_decy"', "did you mean 'weight_decay'"),
        ("config.schedule =", "config.schedul =", "did you mean 'schedule'"),
    ]:
        (tmp_path / "mine.py").write_text(text.replace(old, new))
        assert message in refused(capsys, "--config", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run"))
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    assert "SyntaxError" in refused(capsys, "--config", str(tmp_path / "mine.py"))


def test_weights_of_another_architecture(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from jaxvision.create import create_model

    save_timm(create_model("test_vit", num_classes=10), tmp_path / "vit.safetensors")
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.checkpoint_path={tmp_path / 'vit.safetensors'}",
    )
    for word in ("missing", "unexpected", "test_resnet", "blocks.0.", "another architecture"):
        assert word in error


def test_truncated_weights(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    from jaxvision.create import create_model

    file = tmp_path / "model.safetensors"
    save_timm(create_model("test_resnet", num_classes=10), file)
    file.write_bytes(file.read_bytes()[:1000])
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.checkpoint_path={file}",
    )
    assert str(file) in error


def test_no_network_names_the_ways_out(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    error = refused(
        capsys,
        "--config=configs/quickstart.py:resnet",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.pretrained=True",
        "--config.model.name=resnet18.a1_in1k",
    )
    assert "checkpoint_path" in error
    assert "pretrained=False" in error


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = quick("resnet", train={"steps": 40, "evaluate_every": 0.1, "log_every": 1})
    config.optimizer.update({"name": "sgd", "learning_rate": 1e38, "weight_decay": 0.0})
    config.schedule.update({"name": "constant", "warmup_epochs": 0.2})
    with pytest.raises(UserError, match=r"step \d+: "):
        run.train(config, tmp_path)
    assert not (tmp_path / "export").exists()


def test_an_empty_class_folder_and_a_corrupt_picture(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for label in range(2):
        (pictures / f"class{label}").mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (40 + i, 48, 3), np.uint8)).save(
                pictures / f"class{label}" / f"{i}.jpg"
            )
    arguments = [
        "--config=configs/folder.py:test_resnet",
        f"--workdir={tmp_path / 'run'}",
        f"--config.source.data_dir={pictures}",
        "--config.model.pretrained=False",
        "--config.model.image_size=32",
        "--config.data.batch_size=8",
        "--config.data.workers=0",
        "--config.mesh.data=1",
        "--config.train.steps=5",
    ]
    (pictures / "empty").mkdir()
    assert "empty has no pictures" in refused(capsys, *arguments)
    shutil.rmtree(pictures / "empty")

    bad = pictures / "class1" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    status, out, err = start(capsys, *arguments)
    assert status == 0, err
    assert str(bad) in re.sub(r"\s+", "", out)
    assert "damaged" in (tmp_path / "run" / "report.html").read_text()

    shutil.rmtree(tmp_path / "run")
    error = refused(capsys, *arguments, "--config.data.max_corrupt=0")
    assert str(bad) in error


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fdsp": 8}, "unknown axis of config.mesh 'fdsp'; did you mean 'fsdp'"),
        ({"data": 2.5}, "config.mesh.data is a whole number"),
        ({}, "config.mesh names axes"),
        (3, "config.mesh names axes"),
    ],
)
def test_meshes_that_cannot_be(axes: Any, message: str) -> None:
    config = ConfigDict({"source": {"name": "digits"}, "model": {"name": "test_resnet"}, "mesh": axes})
    with pytest.raises(UserError, match=re.escape(message)):
        run.complete(config)


def test_groups_of_batch_norm_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch_norm_group=3 does not divide the 16 images"):
        run.train(quick("resnet", train={"batch_norm_group": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ten_bad_steps_in_a_row_are_too_many(tmp_path: Path) -> None:
    said: list[str] = []
    seen = watch.Watch(tmp_path, resume_step=0, skip=True, images=str, log=said.append)

    def step(loss: float) -> dict:
        finite = np.isfinite(loss)
        values = {"loss": loss, "grad_norm": 1.0, "learning_rate": 0.1, "finite": finite}
        return {key: jax.numpy.asarray(x) for key, x in values.items()} | {"index": jax.numpy.arange(2)}

    def bad(steps: int) -> list[dict]:
        return [step(np.nan) for _ in range(steps)]

    assert seen.look([*bad(9), step(2.0)], 10)["loss"] == 2.0
    assert np.isnan(seen.look(bad(5), 15)["loss"])
    with pytest.raises(UserError, match="step 20: the loss is nan"):
        seen.look(bad(5), 20)
    assert len(said) == 9 + 5 + 4
    listed = [json.loads(line) for line in (tmp_path / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in listed] == [*range(1, 10), *range(11, 21)]
    assert listed[0]["images"] == ["0", "1"]
    watch.Watch(tmp_path, resume_step=10, skip=True, images=str, log=said.append)
    assert (tmp_path / "not_finite.jsonl").read_text().count("\n") == 9
