"""Training: the straight line from a config to a result."""

from __future__ import annotations

import functools
import os
import sys
import zlib
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.checkpoint import Checkpoints
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.data import pipeline, source
from jaxvision.errors import Preempted, UserError, disk_errors_as_user_errors
from jaxvision.eval.evaluate import eval_step, evaluate_part, tell_damaged
from jaxvision.eval.page import describe, headline, notes_on, write_mistakes
from jaxvision.models.base import Model
from jaxvision.parallel import distributed
from jaxvision.parallel.accelerators import check_accelerator
from jaxvision.parallel.mesh import check_batch_size, make_mesh, mesh_text, process_share, shard_batch
from jaxvision.parallel.preemption import Preemption
from jaxvision.parallel.rules import state_bytes
from jaxvision.run.config import complete
from jaxvision.run.program import host_crop, total_steps, train_program, wanted_devices
from jaxvision.run.sections import MAY_DIFFER, Loop, check_groups, set_keys
from jaxvision.run.watch import Watch
from jaxvision.run.workdir import check_config, lock, write_config
from jaxvision.train import partial
from jaxvision.train.loss import make_loss
from jaxvision.train.partial import parameter_counts
from jaxvision.train.state import evaluated_model, gather_model, initialize


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains what `config` describes, and returns what the result is worth.

    Started again with the same workdir it goes on from the newest good checkpoint, to the same bits.

    Args:
      config: sections as in `SECTIONS`, ``source``, ``mesh`` and ``seed``; a missing key has its function's default.
      workdir: gets ``config.json``, ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``report.html``,
        ``mistakes.csv`` and ``export/`` (the model as timm reads it, with its classes and its transform).

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``, on the test data.

    Raises:
      UserError: a mistake in the config, in the data or in the weights; or a loss that is not finite.
    """
    config, workdir, clock = complete(config), Path(workdir), report.Clock()
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())  # first: to wait for the other processes may take minutes
        distributed.initialize()  # before anything that looks at the devices
        doubts: list[str] = []
        check_accelerator(doubts.append)  # before the console, which looks at them, too
        console = stack.enter_context(report.Console())
        stack.enter_context(disk_errors_as_user_errors(workdir))
        for doubt in doubts:
            console.warn(doubt)

        # Devices and data. Data tells its classes, its channels and its length once.
        mesh = make_mesh(config.mesh.to_dict(), devices=wanted_devices(config.mesh))
        process = process_share(mesh)
        loop = Loop(**config.train)
        batch_size, eval_batch_size = config.data.batch_size, config.data.eval_batch_size or config.data.batch_size
        check_batch_size(batch_size, mesh, accumulate=loop.accumulate)
        check_batch_size(eval_batch_size, mesh)
        check_groups(loop, batch_size)
        with clock.part("data preparation"):
            parts = source.open_source(**set_keys(config.source))
            keep = {"memory_limit": config.data.memory_limit, "max_corrupt": config.data.max_corrupt}
            data = {
                name: pipeline.prepare(part, **keep, log=console.warn)
                for name, part in parts._asdict().items()
                if part is not None
            }
        if not {"train"} < set(data):
            raise UserError("a run needs a train part, and a validation or test part to tell what it learned")
        classes, channels = data["train"].source.classes, data["train"].channels
        steps_per_epoch = len(data["train"]) / batch_size
        steps = total_steps(loop, steps_per_epoch)

        # The model, the optimizer and the step, from shapes alone.
        stored = None if data["train"].stored is None else data["train"].stored.shape[1:]
        program = train_program(
            config, mesh, num_classes=len(classes), channels=channels, stored=stored, steps_per_epoch=steps_per_epoch
        )
        preprocess, graph = program.preprocess, program.graph
        abstract, shardings = program.abstract, program.shardings

        # Where the run starts: this workdir's newest good checkpoint, else the given weights, else random.
        started = check_config(workdir, config.to_dict(), may_differ=MAY_DIFFER)
        if started:  # nothing in it is looked at while another run may be writing
            stack.enter_context(lock(workdir))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, config=config.to_dict(), log=console.warn, **config.checkpoint)
        )
        with clock.part("start"):
            restored = checkpoints.restore(abstract, shardings)
            state = restored.state if restored else initialize(program.create, program.build(weights=True), shardings)
        start = restored.step if restored else 0
        held = _mark(data["train"])
        if restored and (began := restored.position.get("data", held)) != held:
            raise UserError(
                f"{workdir} was begun with other training data: {began['images']:,} images then, {held['images']:,} "
                f"now, or of other names or classes; put them back, or take another workdir"
            )

        # What happens to a batch on the devices in evaluation.
        step_of = functools.partial(
            eval_step, graph, mesh, make_loss(kind=config.loss.kind), config.loss.kind, preprocess, evaluated_model
        )
        assess = functools.partial(
            evaluate_part,
            step_of=step_of,
            mesh=mesh,
            preprocess=preprocess,
            batch_size=eval_batch_size,
            workers=config.data.workers,
            process=process,
            classes=len(classes),
            console=console,
            told_to_stop=preemption.check,
        )
        batches = pipeline.prefetch(
            pipeline.train_batches(
                data["train"],
                batch_size=batch_size,
                image_size=preprocess.image_size,
                seed=config.seed,
                start_step=start,
                stop_step=steps,
                crop=host_crop(config),
                workers=config.data.workers,
                process=process,
            ),
            functools.partial(shard_batch, mesh=mesh),
        )
        stack.callback(batches.close)  # whatever ends the run ends the workers
        total, trainable = parameter_counts(abstract["model"])
        console.start(
            model=config.model.name,
            parameters=total,
            trainable=trainable,
            dataset=config.source.name,
            classes=len(classes),
            data={name: len(part) for name, part in data.items()},
            mesh=_mesh_text(mesh, abstract, shardings, zero1=config.sharding.zero1),
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            first_step=start,
            workdir=workdir,
        )

        if mesh.size < jax.device_count():
            console.warn(f"the mesh takes {mesh.size} of {jax.device_count()} devices; one axis of -1 takes all")
        # Whatever was wrong with config, data and weights has been told by now: the first files are written.
        if not started:
            stack.enter_context(lock(workdir))
            if distributed.is_main() and check_config(workdir, config.to_dict(), may_differ=MAY_DIFFER):
                raise UserError(f"another run has begun in {workdir} meanwhile; take another workdir, or try again")
        write_config(workdir, config.to_dict())
        watch = Watch(
            workdir,
            resume_step=start,
            skip=loop.not_finite == "skip",
            images=data["train"].source.where,
            log=console.warn,
        )
        metrics = stack.enter_context(report.MetricsWriter(workdir, resume_step=start if restored else None))

        for text in _doubts(config, steps=steps, restored=start > 0):
            console.warn(text)
        # The loop. Numbers are fetched now and then, so that the devices never wait for the host.
        watched = "validation" if "validation" in data else "test"
        if start < steps:
            # The evaluation's program first: what would not fit is known at once, and no compilation comes later on, in
            # which the process would be deaf.
            console.note("compiling the evaluation and the step ...")
            with clock.part("compile"):
                blank = pipeline.blank_batch(data[watched], eval_batch_size // process[1], preprocess.image_size)
                evaluation_step = step_of(data[watched].stored is not None)
                jax.block_until_ready(evaluation_step(state, shard_batch(blank, mesh)))
        else:
            console.note("this run is finished: no step is left to train")
        evaluate_every = max(loop.evaluate_every * steps_per_epoch, 1)  # not whole: epochs follow without a gap
        step, result = start, None
        position = restored.position if restored else {}
        recent = [{key: np.float32(x) for key, x in values.items()} for values in position.get("recent", ())]
        due = position.get("evaluation_due", False)  # the run was told to stop while it evaluated
        best, worse = _standing(workdir, watched, before=start if due else start + 1)

        def save() -> None:
            if recent:
                watch.look(recent, step)
            with clock.part("checkpoint"):
                position = {"step": step, "data": held, "recent": _floats(recent), "evaluation_due": due}
                checkpoints.save(step, state, position=position)

        def save_and_stop() -> NoReturn:
            save()
            checkpoints.wait()
            raise Preempted(f"told to stop at step {step:,}, which is saved; the same command goes on")

        while due or (step < steps and (loop.patience is None or worse < loop.patience)):
            if not due:
                with clock.part("data wait"):
                    batch = next(batches)
                with (
                    clock.part("compile") if step == start else nullcontext()
                ):  # the clock takes what is left for steps
                    state, values = program.step(state, batch)
                    if step == start:
                        jax.block_until_ready(values)
                        preemption.working()
                clock.step(batch_size)
                recent.append(values | {"index": batch["index"]})
                step += 1
                due = step // evaluate_every > (step - 1) // evaluate_every or step == steps
                if due or step % loop.log_every == 0:
                    last = watch.look(recent, step)
                    recent, pace, epoch = [], clock.lap(), step / steps_per_epoch
                    metrics.write(step, "train", last | pace, epoch=epoch)
                    pace.pop("step_seconds", None)
                    console.step(step, epoch=epoch, loss=last["loss"], **pace)
            if due:
                try:
                    with clock.part("evaluation"):
                        result = assess(data[watched], state=state, name=watched)
                        tell_damaged(data["train"])
                except Preempted:
                    save_and_stop()
                if step > start:  # else the step is not compiled yet, and what was lost is one evaluation
                    preemption.working()
                better = best is None or result.top1 > best
                kept = better or result.top1 == best  # of equals the newest, which will be the result
                best, worse = (result.top1, 0) if better else (best, worse + 1)
                metrics.write(step, watched, result.scalars(), epoch=step / steps_per_epoch)
                console.result(
                    headline(result),
                    name=watched,
                    step=step,
                    epoch=step / steps_per_epoch,
                    best=kept and watched != "test",
                )
                with clock.part("checkpoint"):
                    position = {"step": step, "data": held}
                    checkpoints.save(step, state, position=position, metrics=result.scalars(), anew=step == start)
                due = False
            elif loop.save_every and step % loop.save_every == 0:
                save()
            if preemption.check():
                save_and_stop()

        batches.close()  # ends the workers; the memory that they share goes with the last batch
        batch = None
        if step < steps:
            console.note(f"stopped early: {worse} evaluations without a better top-1")

        # The result: the best by the validation data; without those nothing may be chosen, and the last one counts.
        with clock.part("checkpoint"):
            checkpoints.wait()
        preemption.nothing_to_lose()
        chosen, reason = step, "the best on the validation data"
        if watched != "validation":
            reason = "the last: no validation data to choose by"
        elif checkpoints.best_step() not in (None, step):
            try:
                restored = checkpoints.restore(abstract, shardings, step="best")
                assert restored is not None
                state, chosen, result = restored.state, restored.step, None
            except UserError as e:  # it is damaged; the work of a whole run is not thrown away for that
                console.warn(str(e))
                reason = "the last: the best cannot be read"
        averaged = " with its averaged weights" if loop.ema_decay else ""
        console.note(f"exported is the model of step {chosen:,}{averaged}, {reason}")
        final = "test" if "test" in data else watched
        if result is None or final != watched:
            with clock.part("evaluation"):
                result = assess(data[final], state=state, name=final)
        # Every process takes part in gathering the model; what follows is for one process and one device of it.
        model = gather_model(graph, state, shardings)
        state = restored = None  # of a model that only fits in parts there would be no room for both
        if distributed.is_main():
            with clock.part("report"):
                classifier = Classifier(partial.merge_lora(cast(Model, model)), tuple(classes), preprocess)
                save_classifier(workdir / "export", classifier)
                page = describe(
                    classifier,
                    result,
                    data[final],
                    title=config.model.name,
                    subtitle=f"{final} data of {config.source.name}, step {chosen:,} of {steps:,}",
                    notes=[*notes_on(data), *_targets_note(config)],
                    config=config.to_dict(),
                    command=[Path(sys.argv[0]).name, *sys.argv[1:]],
                )
            path = report.write_report(workdir, replace(page, timing=clock.timing()))
            console.finish(
                final=headline(result),
                name=final,
                timing=clock.timing(),
                files={
                    "report": path,
                    "mistakes": write_mistakes(workdir, tuple(classes), result, data[final]),
                    "model": workdir / "export",
                    "metrics": workdir / "metrics.jsonl",
                },
            )
        return result.scalars()


def _mesh_text(mesh: jax.sharding.Mesh, abstract: Any, shardings: Any, *, zero1: bool) -> str | None:
    """Returns the mesh, and what each device holds of the state; None for one device that is alone."""
    if mesh.size == 1 == jax.device_count():
        return None
    held = sum(state_bytes(abstract, shardings).values())
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    share = f"{held / 2**20:.1f} of {whole / 2**20:.1f} MiB of state on each device"
    return f"{mesh_text(mesh.shape, zero1=zero1)}; {share}"


def _mark(pictures: pipeline.Pictures) -> dict[str, int]:
    """Returns what tells training data from others: how many pictures, and a checksum of their names and classes.

    Which of them a step sees follows from their order. Folders are no part of the names: data may move.
    """
    source = pictures.source
    names = (os.path.basename(source.where(i)) for i in range(len(source)))
    text = "\n".join([*source.classes, *names])
    return {"images": len(source), "names": zlib.crc32(text.encode("utf-8", "surrogateescape"))}


def _floats(recent: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns metrics of steps as JSON can hold them, to the bit."""
    fetched = jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])
    return [{key: float(x) for key, x in values.items()} for values in fetched]


def _standing(workdir: Path, split: str, *, before: int) -> tuple[float | None, int]:
    """Returns the best top-1 before a step, and how many evaluations there were since: what patience must know.

    What comes later will be evaluated again; process 0 may have dropped it from the file already, or not yet.
    """
    best, worse = None, 0
    for line in report.read_metrics(workdir):
        if line["split"] == split and line["step"] < before:
            better = best is None or line["top1"] > best
            best, worse = (line["top1"], 0) if better else (best, worse + 1)
    return best, worse


def _doubts(config: ConfigDict, *, steps: int, restored: bool) -> list[str]:
    """Returns what a user may not have meant."""
    if restored:
        return []
    loaded, model = config.model.pretrained or config.model.checkpoint_path, config.model
    doubts = []
    if not loaded and (model.freeze_backbone or model.freeze_layers or model.freeze or config.lora.rank):
        doubts.append("what is frozen has random weights; set model.pretrained or model.checkpoint_path")
    if steps < 100:
        doubts.append(f"{steps} steps in all are few; a smaller data.batch_size or more train.epochs make more")
    return doubts


def _targets_note(config: ConfigDict) -> list[str]:
    softened = {
        "label smoothing": config.loss.label_smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
    }
    names = [name for name, strength in softened.items() if strength]
    if not names:
        return []
    return [f"The training loss is with {', '.join(names)}, the evaluation's without: they do not compare."]
