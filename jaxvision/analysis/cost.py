"""What a model costs, by stage: parameters, multiply-adds, activations and bytes, without running it.

The forward pass is traced with shapes only, and its products are counted. A product belongs to the stage of the
parameter that it multiplies by. A product without a parameter (attention, pooling) belongs to the parameter before it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers.conv import StdConv
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.mode import eval_view
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.platform import compiled_for
from jaxvision.weights import catalog


@dataclass(frozen=True)
class Cost:
    """Cost of one stage, or of a whole model, for one image.

    Attributes:
      name: name of the stage.
      parameters: number of parameters, including frozen ones, without BatchNorm statistics.
      weight_bytes: bytes of parameters and statistics, as in a file.
      multiply_adds: of convolutions, linear layers, norms and global average pooling. BatchNorm counts 2 for an element
        of its input, LayerNorm and GroupNorm 5, pooling 1; StdConv counts 4 for an element of its kernel. Other norms
        (RMSNorm, EvoNorm) are not counted, as in timm's tables.
      attention: multiply-adds of the products of two activations, softmax(q k) v.
      activations: number of elements that convolutions and linear layers return.
      activation_bytes: bytes of these elements.
    """

    name: str
    parameters: int = 0
    weight_bytes: int = 0
    multiply_adds: int = 0
    attention: int = 0
    activations: int = 0
    activation_bytes: int = 0

    @property
    def multiply_adds_with_attention(self) -> int:
        """The sum of `multiply_adds` and `attention`."""
        return self.multiply_adds + self.attention


@dataclass(frozen=True)
class ModelInfo:
    """Cost of a model by stage. Its text form is a table.

    Attributes:
      name: name of the architecture.
      image_size: side of the image in pixels.
      in_channels: channels of the image.
      num_classes: number of classes of the head.
      stages: in order, from the image to the head.
      total: sum of the stages.
    """

    name: str
    image_size: int
    in_channels: int
    num_classes: int
    stages: tuple[Cost, ...]
    total: Cost

    def __str__(self) -> str:
        """Returns the table."""
        header = (
            "stage",
            "parameters",
            "multiply-adds",
            "attention",
            "activations",
            "weight bytes",
            "activation bytes",
        )
        rows = [
            (
                row.name,
                _short(row.parameters),
                _short(row.multiply_adds),
                _short(row.attention),
                _short(row.activations),
                f"{row.weight_bytes / 2**20:.2f} MiB",
                f"{row.activation_bytes / 2**20:.2f} MiB",
            )
            for row in (*self.stages, self.total)
        ]
        columns = list(zip(header, *rows, strict=True))
        if not self.total.attention:
            del columns[3]
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(cells, widths)))
            for cells in zip(*columns, strict=True)
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(-1, lines[1])
        size = self.image_size
        lines.insert(0, f"{self.name}: one image of {size} x {size} x {self.in_channels}, {self.num_classes} classes")
        if self.total.attention:
            sums = [_short(n) for n in (self.total.multiply_adds, self.total.multiply_adds_with_attention)]
            lines.append(f"multiply-adds: {sums[0]} as on timm's model cards, {sums[1]} with attention's own products")
        return "\n".join(line.rstrip() for line in lines)


def model_info(model: str | Model, image_size: int | None = None) -> ModelInfo:
    """Returns the cost of a model for one image in evaluation, by stage.

    The numbers are those that timm publishes, which fvcore counts. On timm's model cards "GMACs" is `multiply_adds` and
    "Activations" is `activations`. In timm's benchmark tables GMACs is `multiply_adds_with_attention`. The numbers do
    not depend on the platform.

    Args:
      model: a model, or a name with or without a weight tag.
      image_size: side of the image in pixels. Default: the model's own.

    Raises:
      UserError: the name is unknown, or the model does not take the size.

    Example:
      >>> print(model_info("test_resnet"))
      test_resnet: one image of 160 x 160 x 3, 1000 classes
      stage       parameters  multiply-adds  activations  weight bytes  activation bytes
      ----------------------------------------------------------------------------------
      conv1, bn1      7.47 k        47.82 M     409.60 k      0.03 MiB          1.56 MiB
      ...
      total         469.69 k       103.83 M     640.20 k      1.80 MiB          2.44 MiB
    """
    if isinstance(model, str):
        entry = catalog.lookup(model, where="model")
        if image_size is not None and image_size < 1:
            raise UserError(f"image_size: got {image_size}, expected 1 pixel or more.")
        arguments = {"num_classes": entry.num_classes, "image_size": entry.image_size, **entry.options}
        if image_size is not None:
            arguments["image_size"] = image_size
        model = registry.build_abstract(entry.architecture, **arguments)
    size = image_size or model.image_size
    stages = _stages(model, _model_products(model, size))
    numbers = [field.name for field in dataclasses.fields(Cost) if field.name != "name"]
    total = Cost("total", **{key: sum(getattr(stage, key) for stage in stages) for key in numbers})
    return ModelInfo(model.architecture, size, model.in_channels, model.num_classes, tuple(stages), total)


def _model_products(model: Model, size: int) -> list[_Product]:
    """Returns the products of one forward pass, each with the name of a parameter."""
    graph, shapes = _shapes(model)
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    with compiled_for("tpu"):  # for CPUs some layers have other operations, and tracing both takes twice as long
        traced = jax.make_jaxpr(lambda state, images: nnx.merge(graph, state)(images))(shapes, images).jaxpr
    made_of = {var: frozenset([name]) for var, name in zip(traced.invars, tree.names(shapes), strict=False)}
    norms = {
        ".".join(map(str, (*path, "bias"))): 2 if isinstance(norm, BatchNorm) else 5
        for path, norm in nnx.iter_modules(model)
        if isinstance(norm, BatchNorm | nnx.LayerNorm | nnx.GroupNorm)
    }
    products = _attributed(_products(traced, made_of, norms))
    for path, conv in nnx.iter_modules(model):
        if isinstance(conv, StdConv):
            products.append(_Product("norm", ".".join(map(str, (*path, "kernel"))), 4 * conv.kernel.size, conv.kernel))
    return products


def _shapes(model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    graph, state = nnx.split(eval_view(model))
    return graph, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _stages(model: Model, products: Sequence[_Product]) -> list[Cost]:
    """Returns the cost of each of the model's coarse layer groups, in order."""
    shapes = _shapes(model)[1]
    leaves = dict(zip(tree.names(shapes), jax.tree.leaves(shapes), strict=True))
    weights = tree.names(nnx.state(model, (nnx.Param, nnx.BatchStat, Frozen)))
    statistics = set(tree.names(nnx.state(model, nnx.BatchStat)))
    patterns = [(pattern, i) for i, pattern in enumerate(model.layer_groups(coarse=True))]
    group_of = tree.match(weights, patterns, default=len(patterns), what="layer_groups")
    stages = []
    for group in sorted(set(group_of.values())):
        members = {name: leaves[name] for name in weights if group_of[name] == group}
        own = [product for product in products if product.weight in members]
        linear = [product for product in own if product.kind == "linear"]
        cost = Cost(
            name=_title([product.weight for product in own] + list(members), group_of),
            parameters=sum(leaf.size for name, leaf in members.items() if name not in statistics),
            weight_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in members.values()),
            multiply_adds=sum(product.multiply_adds for product in own if product.kind != "attention"),
            attention=sum(product.multiply_adds for product in own if product.kind == "attention"),
            activations=sum(product.out.size for product in linear),
            activation_bytes=sum(product.out.size * product.out.dtype.itemsize for product in linear),
        )
        stages.append(cost)
    return stages


def operations(jaxpr: core.Jaxpr) -> int:
    """Returns the operations of a program's products, convolutions and attention; a multiply-add counts as two.

    The body of a scan counts as often as it runs. Additions, activations and norms do not count.

    Args:
      jaxpr: the program, from `jax.make_jaxpr`.

    Example:
      >>> def f(w, x):
      ...     return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]
      >>> operations(jax.make_jaxpr(f)(jnp.ones((5, 4, 4)), jnp.ones((2, 4))).jaxpr)
      320
    """
    total = 0
    for eqn in jaxpr.eqns:
        inner = _inner(eqn)
        out: Any = eqn.outvars[0].aval if eqn.outvars else None
        if inner is not None:
            total += eqn.params.get("length", 1) * operations(inner)
        elif eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left: Any = eqn.invars[0].aval
            total += 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel: Any = eqn.invars[1].aval
            features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            # The gradient of a strided convolution convolves an image with zeros between its pixels.
            total += 2 * out.size * kernel.size // features // math.prod(eqn.params["lhs_dilation"])
        elif eqn.primitive.name in _CUDNN_ATTENTION:
            queries, keys = (x.aval for x in eqn.invars[:2])
            total += _CUDNN_ATTENTION[eqn.primitive.name] * 2 * queries.size * keys.shape[1]  # type: ignore[attr-defined]
    return total


# Primitive of cuDNN's attention -> number of its matrix products, without recomputed ones.
_CUDNN_ATTENTION = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 4}


def _short(n: int) -> str:
    """Returns a count in the largest unit in which it is 1 or more, such as ``25.56 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n}  "


def _title(names: Sequence[str], group_of: Mapping[str, int]) -> str:
    """Returns the common start of a stage's names: ``layer1``, or ``blocks.3`` if other stages are also ``blocks``."""
    groups_of_first: dict[str, set[int]] = {}
    for name, group in group_of.items():
        groups_of_first.setdefault(name.split(".")[0], set()).add(group)
    starts = (name.split(".")[: min(len(groups_of_first[name.split(".")[0]]), 2)] for name in names)
    return ", ".join(dict.fromkeys(".".join(start) for start in starts))


# --- Reading a program: its products, and the parameter of each ---


@dataclass(frozen=True)
class _Product:
    kind: str  # "linear", "norm", "pool" or "attention"
    weight: str  # the parameter; "" if there is none
    multiply_adds: int
    out: Any  # shape and dtype


def _products(
    jaxpr: core.Jaxpr, made_of: dict[core.Var, frozenset[str]], norms: Mapping[str, int]
) -> Iterator[_Product]:
    """Yields the products of a program in order.

    Args:
      jaxpr: the program.
      made_of: for each variable that depends on parameters only, their names. Entries are added while the program is
        read, because a kernel may be cast, sliced or scaled before it is used.
      norms: multiply-adds for an element of each norm, by the name of its bias.
    """
    made_of |= dict.fromkeys(jaxpr.constvars, frozenset())
    for eqn in jaxpr.eqns:
        known = [frozenset() if isinstance(x, core.Literal) else made_of.get(x) for x in eqn.invars]
        inner = _inner(eqn)
        if inner is not None:
            body, times, known = inner, eqn.params.get("length", 1), known[len(known) - len(inner.invars) :]
            inside = {var: names for var, names in zip(body.invars, known, strict=True) if names is not None}
            for product in _products(body, inside, norms):
                yield dataclasses.replace(product, multiply_adds=times * product.multiply_adds)
            outs = zip(eqn.outvars, body.outvars, strict=True)
            made_of |= {out: inside[var] for out, var in outs if isinstance(var, core.Var) and var in inside}
        elif _is_global_avg_pool(eqn, jaxpr):
            pooled: Any = eqn.invars[0].aval
            yield _Product("pool", "", pooled.size, eqn.outvars[0].aval)
        elif all(names is not None for names in known):
            made_of |= dict.fromkeys(eqn.outvars, frozenset().union(*(names for names in known if names)))
        else:
            yield from _product(eqn, known, norms)


def _inner(eqn: core.JaxprEqn) -> core.Jaxpr | None:
    """Returns the program that an operation calls, or None."""
    if eqn.primitive.name == "cond":  # in a user's own model; the last branch stands for all
        return eqn.params["branches"][-1].jaxpr
    body = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
    return getattr(body, "jaxpr", body)


def _is_global_avg_pool(eqn: core.JaxprEqn, jaxpr: core.Jaxpr) -> bool:
    """Returns whether an operation is the sum of a mean over the image, from [b, h, w, c] to [b, c].

    Squeeze-and-excitation takes the same mean, but keeps its axes to scale the image. fvcore does not count that one.
    """
    if eqn.primitive.name != "reduce_sum" or tuple(eqn.params["axes"]) != (1, 2):
        return False
    image: Any = eqn.invars[0].aval
    keeps_axes = any(user.primitive.name == "broadcast_in_dim" and eqn.outvars[0] in user.invars for user in jaxpr.eqns)
    return len(image.shape) == 4 and not keeps_axes


def _product(
    eqn: core.JaxprEqn, known: Sequence[frozenset[str] | None], norms: Mapping[str, int]
) -> Iterator[_Product]:
    names = sorted(frozenset().union(*(names for names in known if names)))
    out: Any = eqn.outvars[0].aval
    if eqn.primitive.name == "conv_general_dilated":
        kernel: Any = eqn.invars[1].aval
        features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
        # A kernel of constants, as of blur pooling, belongs to the parameter before it.
        yield _Product("linear", names[0] if names else "", out.size * kernel.size // features, out)
    elif eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        left: Any = eqn.invars[0].aval
        depth = math.prod(left.shape[axis] for axis in contracted)
        yield _Product("linear" if names else "attention", names[0] if names else "", out.size * depth, out)
    elif eqn.primitive.name == "add" and (bias := next((name for name in names if name in norms), None)):
        # A norm is recognized by its bias, which is added to every element. The scale of a GroupNorm is not multiplied
        # with every element, but folded into the deviations.
        yield _Product("norm", bias, out.size * norms[bias], out)


def _attributed(products: Iterable[_Product]) -> list[_Product]:
    """Returns the products, where one without a parameter gets that of the product before it."""
    result: list[_Product] = []
    for product in products:
        weight = product.weight or (result[-1].weight if result else "")
        result.append(dataclasses.replace(product, weight=weight))
    return result
