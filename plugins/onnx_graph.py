"""The ONNX form of a head's network, node by node.

A module says its own form by a method ``to_onnx(graph, name)``, which adds nodes and returns the name of the
result; for layers of PyTorch it stands here. Modules of heads do not import this file: it would be part of
their code, and heads are measured again when their code changes.

The exporter of PyTorch needs a version of onnxscript for each of its own, and fails on BatchNorm under
PyTorch 2.6; of these small networks it would write the same nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from nml.errors import UserError
from nml.labels import Target

# Runtimes of 2022 and later read both.
OPSET, FORMAT = 17, 8


@runtime_checkable
class ToOnnx(Protocol):
    """A module that knows its form."""

    def to_onnx(self, graph: Graph, name: str) -> str:
        """Add the nodes of ``forward`` on the tensor called ``name``; return the name of the result."""


class Graph:
    """Nodes and constants as they are added, each after what it needs."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a list of names where it has several."""
        from onnx import helper

        number = len(self.nodes)
        names = [f"{kind}_{number}_{output}" for output in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Tensor | npt.NDArray[Any] | float) -> str:
        """Add a constant; numbers are float32. Return its name."""
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind == "f" or isinstance(value, int | float):
            array = array.astype(np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def apply(self, module: nn.Module, name: str) -> str:
        """Add a module; return the name of its result.

        Raises:
            UserError: If it has no form here.
        """
        if isinstance(module, ToOnnx):
            return module.to_onnx(self, name)
        form = next((form for kind, form in _FORMS.items() if isinstance(module, kind)), None)
        if form is None:
            raise UserError(
                f"{type(module).__name__} has no ONNX form here",
                possible=", ".join(kind.__name__ for kind in _FORMS) + ", or a module with to_onnx()",
            )
        return form(self, module, name)

    def model(
        self, name: str, result: str, *, dim: int, outputs: int, temperature: float, target: Target
    ) -> Any:
        """Return the model that ends in scores called ``result``: logits and probabilities, or numbers."""
        from onnx import TensorProto, checker, helper, shape_inference

        ends = {"values" if target == "regression" else "logits": result}
        if target != "regression":
            scaled = self.add("Div", result, self.constant(temperature))
            several = target == "multilabel"
            ends["probabilities"] = (
                self.add("Sigmoid", scaled) if several else self.add("Softmax", scaled, axis=1)
            )
        for outer, inner in ends.items():
            self.nodes.append(helper.make_node("Identity", [inner], [outer]))
        shapes: dict[str, list[str | int | None]] = {"features": ["N", dim]}
        shapes |= {end: ["N", outputs] for end in ends}
        values = {
            of: helper.make_tensor_value_info(of, TensorProto.FLOAT, shape) for of, shape in shapes.items()
        }
        graph = helper.make_graph(
            self.nodes, name, [values.pop("features")], list(values.values()), self.constants
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=FORMAT,
            producer_name="noisy-model-learning",
        )
        try:
            checker.check_model(model, full_check=True)
        except (checker.ValidationError, shape_inference.InferenceError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"features [N, {dim}] and {outputs} {'values' if target == 'regression' else 'classes'} "
                f"are not its network's: {reason}"
            ) from error
        return model


def _sequential(graph: Graph, module: nn.Sequential, name: str) -> str:
    for part in module:
        name = graph.apply(part, name)
    return name


def _linear(graph: Graph, module: nn.Linear, name: str) -> str:
    bias = [] if module.bias is None else [graph.constant(module.bias)]
    found: str = graph.add("Gemm", name, graph.constant(module.weight), *bias, transB=1)
    return found


def _gelu(graph: Graph, module: nn.GELU, name: str) -> str:
    if module.approximate != "none":
        raise UserError(f"GELU with approximate={module.approximate!r} has no ONNX form here")
    erf = graph.add("Erf", graph.add("Div", name, graph.constant(math.sqrt(2))))
    half = graph.add("Mul", name, graph.constant(0.5))
    found: str = graph.add("Mul", half, graph.add("Add", erf, graph.constant(1.0)))
    return found


def _batch_norm(graph: Graph, module: nn.BatchNorm1d, name: str) -> str:
    if module.running_mean is None or module.running_var is None:
        raise UserError("BatchNorm1d without running statistics has no ONNX form here")
    width = np.ones(module.num_features, np.float32)
    weight = width if module.weight is None else module.weight
    bias = 0 * width if module.bias is None else module.bias
    values = (weight, bias, module.running_mean, module.running_var)
    found: str = graph.add(
        "BatchNormalization", name, *(graph.constant(value) for value in values), epsilon=module.eps
    )
    return found


def _layer_norm(graph: Graph, module: nn.LayerNorm, name: str) -> str:
    weight = np.ones(module.normalized_shape, np.float32) if module.weight is None else module.weight
    bias = [] if module.bias is None else [graph.constant(module.bias)]
    found: str = graph.add("LayerNormalization", name, graph.constant(weight), *bias, epsilon=module.eps)
    return found


def _alone(kind: str) -> Callable[[Graph, Any, str], str]:
    def form(graph: Graph, module: nn.Module, name: str) -> str:  # noqa: ARG001 - one signature for all
        found: str = graph.add(kind, name)
        return found

    return form


def _nothing(graph: Graph, module: nn.Module, name: str) -> str:  # noqa: ARG001
    return name


_FORMS: dict[type[nn.Module], Callable[[Graph, Any, str], str]] = {
    nn.Sequential: _sequential,
    nn.Linear: _linear,
    nn.Identity: _nothing,
    nn.Dropout: _nothing,
    nn.ReLU: _alone("Relu"),
    nn.Tanh: _alone("Tanh"),
    nn.Sigmoid: _alone("Sigmoid"),
    nn.GELU: _gelu,
    nn.BatchNorm1d: _batch_norm,
    nn.LayerNorm: _layer_norm,
}
