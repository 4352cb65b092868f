"""A saved head as one ONNX file: features in, logits and calibrated probabilities out, the scale inside.

::

    features       float32 [N, D]
    logits         float32 [N, K], what predict_logits returns
    probabilities  float32 [N, K], softmax(logits / temperature); sigmoid where a sample has several classes

The classes, in the order of the columns, are JSON in the file's metadata, under ``classes``; where a sample
has several, ``thresholds`` are the probabilities from which on they are named. A head that predicts numbers
has one output, ``values``, float32 [N, 1].
"""

from __future__ import annotations

import json

from nml.errors import UserError, import_extra
from plugins.onnx_graph import Graph
from plugins.saved import SavedHead

# A file of the format holds less than 2 GiB.
MOST_BYTES = (1 << 31) - (1 << 20)


def onnx_bytes(saved: SavedHead) -> bytes:
    """Return the ONNX file of a saved head.

    Raises:
        UserError: If the head has no ``inference_module``, or one of other parts than those that have an ONNX
            form; if it is too large for a file; or if the extra ``onnx`` is not installed.
    """
    build = getattr(saved.head, "inference_module", None)
    if build is None:
        raise UserError(
            f"head {saved.name} cannot be exported: it has no inference_module()",
            mend="use it in Python, plugins.saved.load_head; or add the method, see plugins/head.py",
        )
    module = build()
    size = sum(value.nbytes for value in module.state_dict().values())
    if size > MOST_BYTES:
        raise UserError(
            f"head {saved.name} holds {size:,} bytes, too many for an ONNX file", possible="below 2 GiB"
        )
    import_extra("onnx", "onnx", "export to ONNX")
    graph = Graph()
    try:
        result = graph.apply(module, "features")
        model = graph.model(
            saved.name,
            result,
            dim=saved.dim,
            outputs=saved.outputs,
            temperature=saved.temperature,
            target=saved.target,
        )
    except UserError as error:
        raise UserError(
            f"head {saved.name} cannot be exported: {error.what}", possible=error.possible
        ) from error
    about = {
        "classes": json.dumps(list(saved.classes), ensure_ascii=False),
        "head": saved.name,
        "temperature": repr(saved.temperature),
        "encoder": str(saved.about.get("encoder", "")),
        "target": saved.target,
        **({"thresholds": json.dumps(saved.thresholds)} if saved.thresholds else {}),
    }
    for name, value in about.items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content
