"""What `gpu.py` measures in each of its processes."""

from __future__ import annotations

import functools
import gc
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import forward  # adds the folder of the tests' support to the path
import jax
import jax.numpy as jnp
import numpy as np
import train
from flax import nnx
from gpu import MODELS, TINY_MODELS, Report, Row, has_torch
from jax.sharding import Mesh
from train import Case

from jaxvision.analysis.cost import operations
from jaxvision.models import registry
from jaxvision.models.layers import attention, convolve
from jaxvision.models.layers.mode import eval_view
from jaxvision.parallel.chips import chip_of
from jaxvision.parallel.mesh import make_mesh
from jaxvision.plan.roofline import Plan
from jaxvision.plan.traffic import count_traffic
from jaxvision.platform import compiled_for

GIB = 2**30
PARITY_BATCH = 4

# (pixels, channels, kernel size, stride) of depthwise convolutions of EfficientNet-B3 at 300 pixels
DEPTHWISE = [(150, 40, 3, 1), (150, 144, 3, 2), (38, 288, 5, 1), (19, 816, 5, 1), (10, 1392, 5, 1)]
TINY_DEPTHWISE = [(8, 16, 3, 1), (8, 16, 5, 2)]


@dataclass(frozen=True)
class Repeats:
    """How often each function is timed: `iterations` calls without a pause in each of `rounds`."""

    rounds: int
    iterations: int


def measure(parts: list[str], report: Report, *, tiny: bool) -> None:
    """Measures the parts of one process and adds their rows to the report."""
    device = jax.devices()[0]
    if device.platform == "cpu" and not tiny:
        sys.exit('JAX sees no GPU. Run "jaxvision doctor", or pass --tiny for a short run on the CPU.')
    report.set(device=device.device_kind if device.platform != "cpu" else forward.processor())
    repeats = Repeats(rounds=1, iterations=2) if tiny else Repeats(rounds=5, iterations=10)
    for part in parts:
        measure_part(part, report, repeats, tiny=tiny)


def measure_part(part: str, report: Report, repeats: Repeats, *, tiny: bool) -> None:
    """Measures the layers or one model. A section that fails leaves a row that says so."""
    jobs: dict[tuple[str, ...], Callable[[], Iterator[Row]]]
    if part == "layers":
        jobs = {
            ("attention",): partial(attention_rows, repeats, tiny),
            ("depthwise",): partial(depthwise_rows, repeats, tiny),
        }
    else:
        case = Case(part, *(TINY_MODELS if tiny else MODELS)[part])
        jobs = {
            ("parity",): partial(parity_rows, case),
            ("training", "memory"): partial(training_rows, case, repeats),
            ("inference",): partial(inference_rows, case, repeats),
        }
    finished: list[str] = []
    for sections, job in jobs.items():
        try:
            for row in job():
                report.add(row)
        except Exception as e:  # the other sections are still worth having
            traceback.print_exc()
            lines = str(e).strip().splitlines() or [""]
            for section in sections:
                report.add(Row(section, part, "the rest", note=f"failed: {type(e).__name__}: {lines[0][:200]}"))
        finished += sections
        report.set(finished={**report.read().get("finished", {}), part: finished})
        gc.collect()  # frees the memory of this section


# --- Parity ---


def parity_rows(case: Case) -> Iterator[Row]:
    """Yields the errors of logits and gradients against float32 on the CPU."""
    title = f"{case.model} @ {case.size}, batch {PARITY_BATCH}"
    small = Case(case.model, case.size, PARITY_BATCH)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    # On a CPU, what is compared with the CPU's implementations are the default ones.
    target = make_mesh(devices=[cpu]) if device.platform != "cpu" else "tpu"
    exact = logits_and_gradient(small, cpu, target, None, "highest")
    in_bfloat16 = logits_and_gradient(small, cpu, make_mesh(devices=[cpu]), jnp.bfloat16, None)
    half = [error(*pair) for pair in zip(in_bfloat16, exact, strict=True)]
    # The error of a ReLU's gradient is as the root of the rounding error: it is the share of inputs that change sign.
    kinds: dict[str, tuple[Any, str | None, tuple[float, float]]] = {"float32": (None, "highest", (2**-8, 2**-5))}
    if device.platform == "gpu":
        kinds["TF32"] = (None, None, (1.0, 1.0))
    kinds["bfloat16"] = (jnp.bfloat16, None, (2.0, 2.0))
    for kind, (dtype, precision, factors) in kinds.items():
        got = logits_and_gradient(small, device, make_mesh(devices=[device]), dtype, precision)
        for name, ours, reference, scale, factor in zip(("logits", "gradient"), got, exact, half, factors, strict=True):
            value, limit = error(ours, reference), factor * scale
            note = "within" if value <= limit else "too large"  # also if it is not a number
            row = Row("parity", title, f"{name}, {kind}", "relative", value)
            yield replace(row, other="limit", other_value=limit, note=note)


@functools.cache  # on a CPU, bfloat16 is wanted twice
def logits_and_gradient(
    case: Case, device: jax.Device, target: Mesh | str, dtype: Any, precision: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits, and the gradient of all parameters, of the same weights and images in each call.

    The gradient is that of the logits' product with fixed random numbers.
    """
    graph, params, rest = nnx.split(abstract_model(case, dtype=dtype), nnx.Param, ...)  # type: ignore[misc]
    images, _ = train.examples(case)
    seed = np.random.default_rng(2).standard_normal((case.batch, train.CLASSES), np.float32)

    def run(params: nnx.State, rest: nnx.State, images: jax.Array, seed: jax.Array) -> tuple[jax.Array, nnx.State]:
        with compiled_for(target), jax.default_matmul_precision(precision or "default"):
            logits, pull = jax.vjp(lambda params: nnx.merge(graph, params, rest)(images), params)
            return logits, pull(seed.astype(logits.dtype))[0]

    arguments = jax.device_put((random_values(params), random_values(rest), images, seed), device)
    logits, gradient = jax.jit(run)(*arguments)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
    return np.asarray(logits, np.float64), np.concatenate(leaves)


def error(got: np.ndarray, reference: np.ndarray) -> float:
    """Returns the norm of the difference, divided by that of the reference."""
    return float(np.linalg.norm(got - reference) / np.linalg.norm(reference))


def abstract_model(case: Case, **types: Any) -> nnx.Module:
    """Returns the model in evaluation mode, with shapes for arrays."""
    extra = train.options(case, "image_size")
    return eval_view(registry.build_abstract(case.model, num_classes=train.CLASSES, **extra, **types))


def random_values(shapes: nnx.State) -> nnx.State:
    """Returns random arrays of these shapes, such that no gradient vanishes.

    A new model does not do: the last scale of a residual block is 0, and then so is the gradient of the whole block.
    """
    rng = np.random.default_rng(1)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(x.shape, np.float32)
        if x.ndim > 1:
            values = noise * (2 / np.prod(x.shape[:-1])) ** 0.5
        else:
            is_factor = any(name in jax.tree_util.keystr(path) for name in ("scale", "var"))
            values = 1 + 0.1 * np.abs(noise) if is_factor else 0.1 * noise
        return values.astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- Whole models ---


def training_rows(case: Case, repeats: Repeats) -> Iterator[Row]:
    """Yields the speed and the peak memory of the train step."""
    title = f"{case.model} @ {case.size}, batch {case.batch}"
    images, labels = train.examples(case)
    device = jax.devices()[0]
    held, earlier_peak = memory(device, "bytes_in_use") or 0, memory(device, "peak_bytes_in_use")
    begin = time.perf_counter()
    step, abstract, first_state = train.jax_program(case, dtype=jnp.bfloat16)
    batch = train.jax_batch(images, labels)
    traced = step.trace(abstract, batch)
    compiled = traced.lower().compile()  # before the state exists, so that the tuning's memory is not added to it
    state = first_state()

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    jax.block_until_ready(run())
    first = time.perf_counter() - begin
    flops = operations(traced.jaxpr.jaxpr)
    yield from speed_rows("training", case, flops, measure_in_turn({"jaxvision": run}, repeats))

    need = compiled.memory_analysis()
    predicted = (
        need.argument_size_in_bytes
        + need.temp_size_in_bytes
        + (need.output_size_in_bytes - need.alias_size_in_bytes)
        + need.generated_code_size_in_bytes
    )
    peak, measured, note = memory(device, "peak_bytes_in_use"), None, ""
    if peak is None:
        note = "no measured peak: the device has no statistics"
    elif peak == earlier_peak:
        note = "no measured peak: it is below that of an earlier section"
    else:
        measured = (peak - held) / GIB
    of_memory = partial(Row, "memory", title, unit="GiB")
    yield of_memory("predicted peak", value=predicted / GIB, other="measured", other_value=measured, note=note)
    plan = Plan(chip_of(device), {"data": 1}, False, case.batch, {}, flops, count_traffic(compiled.as_text()))
    if plan.step_seconds:
        yield Row("training", title, "roofline of the step", "ms", 1000 * plan.step_seconds)
    if not has_torch():
        yield Row("training", title, "first step", "s", first)
        return

    import torch

    start_torch()
    begin = time.perf_counter()
    options = {"channels_last": True, "dtype": torch.bfloat16, **torch_options()}
    theirs = train.torch_step(case, images, labels, **options)
    theirs()
    wait_for_torch()
    first_torch = time.perf_counter() - begin
    yield Row("training", title, "first step", "s", first, other="torch", other_value=first_torch)
    times = measure_in_turn({"jaxvision": run, "torch": theirs}, repeats)
    yield from speed_rows("training", case, flops, times)
    if torch.cuda.is_available() and measured:
        of_torch = torch.cuda.max_memory_allocated() / GIB
        yield of_memory("measured peak", value=measured, other="torch", other_value=of_torch)


def inference_rows(case: Case, repeats: Repeats) -> Iterator[Row]:
    """Yields the speed of the forward pass."""
    images, _ = train.examples(case)
    device = jax.devices()[0]
    graph, shapes = nnx.split(abstract_model(case, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    state, x = jax.device_put((random_values(shapes), images.astype(jnp.bfloat16)), device)

    def predict(state: nnx.State, x: jax.Array) -> jax.Array:
        with compiled_for(make_mesh(devices=[device])):
            return nnx.merge(graph, state)(x)

    traced = jax.jit(predict).trace(state, x)
    compiled, flops = traced.lower().compile(), operations(traced.jaxpr.jaxpr)
    runs: dict[str, Callable[[], Any]] = {"jaxvision": lambda: compiled(state, x)}
    yield from speed_rows("inference", case, flops, measure_in_turn(runs, repeats))
    if not has_torch():
        return

    import torch

    start_torch()
    options = {**train.options(case, "img_size"), "num_classes": train.CLASSES, **torch_options()}
    runs["torch"] = forward.torch_forward(case.model, images, channels_last=True, dtype=torch.bfloat16, **options)
    yield from speed_rows("inference", case, flops, measure_in_turn(runs, repeats))


def speed_rows(section: str, case: Case, flops: float, times: dict[str, list[float]]) -> Iterator[Row]:
    """Yields images per second and MFU of jaxvision, beside those of PyTorch if they were measured."""
    title = f"{case.model} @ {case.size}, batch {case.batch}"
    peak = chip_of(jax.devices()[0]).flops
    fast = {name: (min(each), statistics.median(each)) for name, each in times.items()}
    ours, theirs = fast["jaxvision"], fast.get("torch")

    def row(measure: str, unit: str, amount: float) -> Row:
        row = Row(section, title, measure, unit, amount / ours[0], amount / ours[1])
        if theirs is None:
            return row
        return replace(row, other="torch", other_value=amount / theirs[0], other_median=amount / theirs[1])

    yield row("bfloat16", "images/s", case.batch)
    if peak:
        yield row("MFU", "%", 100 * flops / peak)


def memory(device: jax.Device, name: str) -> int | None:
    """Returns a statistic of the device's allocator, None on a CPU."""
    return (device.memory_stats() or {}).get(name)


# --- Layers ---


def attention_rows(repeats: Repeats, tiny: bool) -> Iterator[Row]:
    """Yields the duration of attention, forward and backward, in bfloat16."""
    b, n, k, c = (4, 17, 2, 16) if tiny else (256, 197, 12, 64)
    *qkv, dy = (random_bfloat16((b, n, k, c)) for _ in range(4))

    def compiled(attend: Callable[..., jax.Array]) -> Any:
        def run(q: jax.Array, k: jax.Array, v: jax.Array, dy: jax.Array) -> Any:
            y, pull = jax.vjp(lambda *qkv: attend(*(x.swapaxes(1, 2) for x in qkv)).swapaxes(1, 2), q, k, v)
            return y, pull(dy)

        return jax.jit(run).lower(*qkv, dy).compile()

    row = partial(Row, "attention", f"b {b}, n {n}, heads {k}, c {c}", unit="ms")
    programs = {"XLA": compiled(attention._attend_fused), "explicit": compiled(attention._attend)}
    if jax.devices()[0].platform == "gpu":
        programs["cuDNN"] = compiled(attention._attend_cudnn)
    else:
        yield row("cuDNN", note="needs an NVIDIA GPU")
    runs: dict[str, Callable[[], Any]] = {name: partial(program, *qkv, dy) for name, program in programs.items()}
    if has_torch():
        runs["torch's SDPA"] = torch_attention((b, n, k, c))
    working = {name: each.memory_analysis().temp_size_in_bytes / GIB for name, each in programs.items()}
    notes = {name: f"needs {size:.2g} GiB of working memory" for name, size in working.items()}
    if "cuDNN" in programs and "fmha" not in programs["cuDNN"].as_text():
        notes["cuDNN"] = "failed: JAX found no cuDNN and used XLA's implementation"
    yield from rows_of_variants(row, runs, repeats, notes)


def torch_attention(shape: tuple[int, ...]) -> Callable[[], Any]:
    """Returns a function that starts PyTorch's attention of q, k, v [b, n, heads, c], and its gradient."""
    import torch

    start_torch()
    *qkv, dy = (torch.randn(shape, device=torch_options()["device"], dtype=torch.bfloat16) for _ in range(4))
    qkv = [x.requires_grad_() for x in qkv]

    def run() -> None:
        y = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)
        torch.autograd.grad(y, qkv, dy)

    return run


def depthwise_rows(repeats: Repeats, tiny: bool) -> Iterator[Row]:
    """Yields the duration of depthwise convolutions in bfloat16: forward, and the gradients of input and kernel."""
    b = 4 if tiny else 128
    for shape in TINY_DEPTHWISE if tiny else DEPTHWISE:
        yield from depthwise_rows_of(b, *shape, repeats)


def depthwise_rows_of(b: int, size: int, c: int, k: int, stride: int, repeats: Repeats) -> Iterator[Row]:
    """Yields the durations for one shape: XLA's grouped convolution, and a sum of shifted products."""
    padding = convolve.padding_of("torch", (size, size), k, stride)

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve._convolution(x, kernel, stride, padding, groups=c)

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve._shifted_sum(convolve._pad(x, padding), kernel, stride)

    def shifted_input_gradient(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
        return convolve._shifted_input_gradient(x.shape, kernel, dy, stride, padding)

    out = (size - 1) // stride + 1
    arrays = [random_bfloat16(shape) for shape in ((b, size, size, c), (k, k, 1, c), (b, out, out, c))]
    ours, theirs = directions(grouped), {**directions(shifted), "input gradient": shifted_input_gradient}
    row = partial(Row, "depthwise", f"b {b}, {size} px, c {c}, {k}x{k}, stride {stride}", unit="ms")
    for name in ours:
        variants = {f"{name}, XLA": ours[name], f"{name}, shifted": theirs[name]}
        yield from rows_of_variants(row, {each: partial(jax.jit(f), *arrays) for each, f in variants.items()}, repeats)


def directions(convolution: Callable[..., jax.Array]) -> dict[str, Callable[..., jax.Array]]:
    """Returns the functions of (x, kernel, dy) that compute the convolution and its two gradients."""
    return {
        "forward": lambda x, kernel, dy: convolution(x, kernel),
        "input gradient": lambda x, kernel, dy: jax.vjp(lambda x: convolution(x, kernel), x)[1](dy),
        "kernel gradient": lambda x, kernel, dy: jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](dy),
    }


def random_bfloat16(shape: tuple[int, ...]) -> jax.Array:
    """Returns normal random numbers on the device. With constants a GPU would draw less power and run faster."""
    return jax.random.normal(jax.random.key(math.prod(shape)), shape, jnp.bfloat16)


def rows_of_variants(
    row: Callable[..., Row], runs: Mapping[str, Callable[[], Any]], repeats: Repeats, notes: Mapping[str, str] = {}
) -> Iterator[Row]:
    """Yields the duration of each function. The first one is beside the others."""
    times = measure_in_turn(runs, repeats)
    base, *_ = times
    for name, each in times.items():
        best, median = 1000 * min(each), 1000 * statistics.median(each)
        if name == base:
            yield row(name, value=best, median=median, note=notes.get(name, ""))
            continue
        other = {"other_value": 1000 * min(times[base]), "other_median": 1000 * statistics.median(times[base])}
        label = base.split(", ")[-1]
        yield row(name, value=best, median=median, other=label, **other, note=notes.get(name, ""))


# --- Time ---


def measure_in_turn(runs: Mapping[str, Callable[[], Any]], repeats: Repeats) -> dict[str, list[float]]:
    """Returns the seconds per call of each function in each round. They take turns, so that all see the same clocks."""
    for run in runs.values():
        wait_for(run())  # compiles
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats.rounds):
        for name, run in runs.items():
            wait_for(run())  # the other's data are in the caches
            begin = time.perf_counter()
            for _ in range(repeats.iterations):
                out = run()
            wait_for(out)
            times[name].append((time.perf_counter() - begin) / repeats.iterations)
    return times


def wait_for(out: Any) -> None:
    """Waits for arrays of JAX; without one, for PyTorch."""
    if out is None:
        wait_for_torch()
    else:
        jax.block_until_ready(out)


def wait_for_torch() -> None:
    """Waits for the work of PyTorch."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_options() -> dict[str, Any]:
    """Returns the device of PyTorch, and whether to compile for it: on a CPU that takes minutes."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {"device": "cuda" if on_gpu else "cpu", "compiled": on_gpu}


def start_torch() -> None:
    """Sets PyTorch up for speed, and frees the memory of an earlier section."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
