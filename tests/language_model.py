"""A small language model made by hand: a token table, layers with a residual MLP, and a head in any form.

Its weights are known, so that a test can say what every rewrite of it has to compute.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = npt.NDArray[Any]
Form = Literal["matmul", "gemm", "transpose", "separate", "fused"]
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
NUMPY: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Model:
    """What to build. Weights are [N, K], as a projection multiplies by them, whatever way they are stored."""

    columns: int = 48
    """K: width of the hidden states."""
    inner: int = 80
    vocabulary: int = 70
    layers: int = 2
    dtype: str = "float32"
    table_dtype: str | None = None
    """The table's own type where it is not `dtype`; a Cast follows the Gather."""
    head: Form = "transpose"
    """`separate`: a copy [K, V] of its own; `transpose`: one table behind a Transpose; `gemm`, `fused`: transB."""
    bias: bool = False
    named: bool = True
    """Nodes and weights carry the names of the modules they come from."""
    weights: Mapping[str, Array] = field(default_factory=dict)
    """Values that replace the random ones."""

    def values(self) -> dict[str, Array]:
        """Return all weights in the model's type."""
        random = np.random.default_rng(7)
        shapes: dict[str, tuple[int, ...]] = {"table": (self.vocabulary, self.columns)}
        for i in range(self.layers):
            shapes[f"layers.{i}.self_attn.v_proj"] = (self.columns, self.columns)
            shapes[f"layers.{i}.mlp.up_proj"] = (self.inner, self.columns)
            shapes[f"layers.{i}.mlp.down_proj"] = (self.columns, self.inner)
            if self.bias:
                shapes[f"layers.{i}.mlp.up_proj.bias"] = (self.inner,)
        found = {name: random.standard_normal(shape, np.float32) / 7 for name, shape in shapes.items()}
        found |= self.weights
        found.setdefault("lm_head", found["table"])
        kind = NUMPY[self.dtype]
        own = {"table": NUMPY[self.table_dtype or self.dtype]}
        return {name: np.asarray(value).astype(own.get(name, kind)) for name, value in found.items()}

    def save(self, path: Path, *, external: bool = True) -> Path:
        """Write the model; `external` puts its weights into a file beside it."""
        onnx_model = _Builder(self).model()
        onnx.save(onnx_model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=1024)
        return path


class _Builder:
    def __init__(self, spec: Model) -> None:
        self.spec = spec
        self.values = spec.values()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        spec = self.spec
        self._weight("table", "model.embed_tokens.weight", self.values["table"])
        hidden = self._node("Gather", ["model.embed_tokens.weight", "input_ids"], "/model/embed_tokens/Gather")
        if spec.table_dtype not in {None, spec.dtype}:
            hidden = self._node("Cast", [hidden], "/model/embed_tokens/Cast", to=ELEMENT[spec.dtype])
        for i in range(spec.layers):
            mixed = self._linear(hidden, f"layers.{i}.self_attn.v_proj")
            hidden = self._node("Add", [hidden, mixed], f"/model/layers.{i}/Add")
            up = self._node("Relu", [self._linear(hidden, f"layers.{i}.mlp.up_proj")], f"/model/layers.{i}/Relu")
            down = self._linear(up, f"layers.{i}.mlp.down_proj")
            hidden = self._node("Add", [hidden, down], f"/model/layers.{i}/Add_1")
        self._head(hidden)
        kind = ELEMENT[spec.dtype]
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
            [helper.make_tensor_value_info("logits", kind, ["batch", "sequence", spec.vocabulary])],
            self.initializers,
        )
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)

    def _linear(self, value: str, name: str) -> str:
        weight = f"model.{name}.weight" if self.spec.named else f"onnx::MatMul_{len(self.initializers)}"
        self._weight(name, weight, self.values[name].T)
        node = f"/model/{name.replace('.', '/').replace('layers/', 'layers.')}/MatMul"
        result = self._node("MatMul", [value, weight], node if self.spec.named else f"node_{len(self.nodes)}")
        if f"{name}.bias" not in self.values:
            return result
        self._weight(name, f"model.{name}.bias", self.values[f"{name}.bias"])
        return self._node("Add", [result, f"model.{name}.bias"], node.replace("MatMul", "Add"))

    def _head(self, hidden: str) -> None:
        spec, shared = self.spec, "model.embed_tokens.weight"
        if spec.table_dtype not in {None, spec.dtype} or spec.head == "separate":
            shared = "lm_head.weight"
            self._weight("lm_head", shared, self.values["lm_head"].T)
            self._node("MatMul", [hidden, shared], "/lm_head/MatMul", output="logits")
        elif spec.head == "transpose":
            turned = self._node("Transpose", [shared], "/lm_head/Transpose", perm=[1, 0])
            self._node("MatMul", [hidden, turned], "/lm_head/MatMul", output="logits")
        elif spec.head == "fused":
            self._node(
                "FusedMatMul", [hidden, shared], "/lm_head/MatMul", output="logits", domain="com.microsoft", transB=1
            )
        elif spec.head == "gemm":
            flat = self._constant([-1, spec.columns])
            rows = self._node("Reshape", [hidden, flat], "/lm_head/Flatten")
            result = self._node("Gemm", [rows, shared], "/lm_head/Gemm", transB=1)
            leading = self._node("Shape", [hidden], "/lm_head/Shape", start=0, end=-1)
            shape = self._node("Concat", [leading, self._constant([spec.vocabulary])], "/lm_head/Concat", axis=0)
            self._node("Reshape", [result, shape], "/lm_head/Restore", output="logits")
        else:
            raise AssertionError(spec.head)

    def _weight(self, _: str, name: str, value: Array) -> None:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def _constant(self, values: list[int]) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _node(
        self, op: str, inputs: list[str], name: str, *, output: str | None = None, domain: str = "", **attributes: Any
    ) -> str:
        output = output or f"{name}_output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, domain=domain, **attributes))
        return output


def ids(spec: Model, *, batch: int = 2, length: int = 5) -> Array:
    """Return token ids, the first and the last of the vocabulary among them."""
    found = np.random.default_rng(3).integers(0, spec.vocabulary, (batch, length), np.int64)
    found.flat[0], found.flat[-1] = 0, spec.vocabulary - 1
    return found


def run(path: Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model on the CPU and return its outputs by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
