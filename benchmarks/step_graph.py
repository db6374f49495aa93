"""What TensorFlow's executor does in a training step: its operations, products and bytes.

`executed` returns the operations of the graph as they run, after TensorFlow's own optimizer has
merged some and removed others. Three counts bound the time of a step that runs them one by one:

- `products`: sizes of the matrix products. A convolution counts as the product that it is of the
  patches of its input.
- `moved_bytes`: what the others read and write, if each reads its inputs and writes its outputs.
- `launched`: how many there are.
"""

import math
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.eager import context  # the one way to the graph that runs

# They pass on what they are given, or are done before the step.
FREE = {
    *("_Arg", "_Retval", "Const", "NoOp", "Placeholder", "ReadVariableOp", "Identity", "IdentityN"),
    *("Reshape", "Squeeze", "ExpandDims", "EnsureShape", "Shape", "StopGradient"),
    *("Enter", "Exit", "Merge", "Switch", "NextIteration", "LoopCond"),
}
NOT_LAUNCHED = {"_Arg", "_Retval", "Const", "NoOp"}


class Operation(NamedTuple):
    """An operation and how often a step runs it; shapes and sizes of what goes in and out."""

    op: tf.Operation
    kind: str
    times: int

    @property
    def bytes(self):
        """Bytes that it reads and writes."""
        ends = [t for t in self.op.inputs if t.dtype != tf.resource]
        inputs = sum(_bytes(t) for t in ends)
        if self.kind.startswith("Assign"):  # value in, variable out; sums read the variable, too
            return inputs * (2 if self.kind == "AssignVariableOp" else 3)
        return inputs + sum(_bytes(t) for t in self.op.outputs)


def _bytes(tensor):
    count = tensor.shape.num_elements()
    if tensor.shape.rank is None and tensor.dtype in (tf.int32, tf.bool):
        count = 1  # the counter of a loop
    if count is None:
        raise ValueError(f"{tensor.name} of {tensor.op.type} has the shape {tensor.shape}")
    return count * tensor.dtype.size


def executed(model, shape):
    """Return the operations of a training step of a compiled model on a batch of ``shape``.

    A step may have one loop, of ``model.dde_steps`` rounds, that changes variables only.
    """
    step = tf.function(model.train_step, autograph=False)
    step = step.get_concrete_function(tf.TensorSpec(shape))
    batch = tf.zeros(shape)
    context.context().enable_graph_collection()
    try:
        step(batch)
        graphs = context.context().export_run_metadata().function_graphs
    finally:
        context.context().disable_graph_collection()
    graph = max((g.post_optimization_graph for g in graphs), key=lambda g: len(g.node))
    kinds = {node.name: node.op for node in graph.node}
    in_loop = getattr(model, "dde_steps", 1)  # the one loop of a step
    return [
        Operation(op, kind, in_loop if op.name.startswith("while/") and kind != "Enter" else 1)
        for op in _with_shapes(graph, step.graph.inputs).get_operations()
        if (kind := kinds[op.name]) is not None
    ]


def _with_shapes(nodes, inputs):
    """Import the graph of a function, in which variables become placeholders of their shapes."""
    by_name = {node.name: node for node in nodes.node}

    def source(name):
        return by_name[name.partition(":")[0]]

    def variable(node):  # that a read is of: through the entry of a loop
        while node.op != "_Arg":
            node = source(node.input[0])
        return node

    def constant(name):  # that a loop passes on unchanged, since shapes may depend on it
        node = source(name)
        while node.op in ("Enter", "Switch", "Merge", "Identity"):
            if node.op == "Merge":
                back = source(source(node.input[1]).input[0])
                if back.op != "Switch" or source(back.input[0]) is not node:
                    return name
            node = source(node.input[0])
        return node.name if node.op == "Const" else name

    graph = tf.compat.v1.GraphDef(versions=nodes.versions)
    for node in nodes.node:
        new = graph.node.add()
        new.CopyFrom(node)
        new.device = ""
        new.input[:] = [constant(i) for i in node.input if not i.startswith("^")]
        if node.op == "_Arg":
            shape, dtype = inputs[node.attr["index"].i].shape.as_proto(), node.attr["T"]
        elif node.op == "ReadVariableOp":
            shape = variable(node).attr["_handle_shapes"].list.shape[0]
            dtype = node.attr["dtype"]
        else:
            if node.op == "_Retval":
                new.op = "Identity"
                del new.attr["index"]
            continue
        new.op = "Placeholder"
        new.input[:] = []
        new.attr.clear()
        new.attr["dtype"].CopyFrom(dtype)
        new.attr["shape"].shape.CopyFrom(shape)
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
    return imported


def products(operations):
    """Return the sizes (rows, inner, columns) of the matrix products, each as often as it runs."""
    sizes = []
    for op, kind, times in operations:
        if kind in ("MatMul", "_FusedMatMul"):
            a, c = op.inputs[0].shape, op.outputs[0].shape
            size = (c[0], a[0 if op.get_attr("transpose_a") else 1], c[1])
        elif "Conv2D" in kind:
            of_kernel, of_input = kind.endswith("Filter"), kind.endswith("Input")
            pixels = (op.inputs[2] if of_kernel or of_input else op.outputs[0]).shape
            kernel = (op.outputs[0] if of_kernel else op.inputs[1]).shape
            rows, channels = math.prod(pixels[:3]), pixels[3]
            patch = math.prod(kernel[:3])
            size = (rows, patch, channels)
            if of_kernel or of_input:
                size = (patch, rows, channels) if of_kernel else (rows, channels, patch)
        elif "MatMul" in kind or "Einsum" in kind:
            raise ValueError(f"`products` does not know the operation {kind}.")
        else:
            continue
        if None in size:
            raise ValueError(f"{op.name} ({kind}) has the unknown size {size}")
        sizes += [size] * times
    return sizes


def is_product(operation):
    return "MatMul" in operation.kind or "Conv2D" in operation.kind


def moving(operations):
    """Return the operations that read and write arrays and are no products."""
    return [o for o in operations if o.kind not in FREE and not is_product(o)]


def moved_bytes(operations):
    """Return the bytes that all but products and views read and write."""
    return sum(o.times * o.bytes for o in moving(operations))


def launched(operations):
    """Return how many kernels the executor starts, products included."""
    return sum(o.times for o in operations if o.kind not in NOT_LAUNCHED)
