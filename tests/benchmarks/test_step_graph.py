"""benchmarks/step_graph.py counts what a step runs, and roofline.py the time that it needs."""

import pytest
import roofline
import step_cases
import step_graph
import tensorflow as tf

RESIDUAL = {"kind": "residual", "inputs": 2, "width": 8, "depth": 3, "outputs": 1}


class Step:
    """A step as a model has it, of the function ``update`` of a batch."""

    def __init__(self, update, dde_steps=1):
        self.train_step, self.dde_steps = update, dde_steps


def test_convolutions_and_products_are_counted_by_hand():
    kernel = tf.Variable(tf.ones((4, 4, 3, 6)))
    last = tf.Variable(tf.ones((4 * 4 * 6, 7)))

    def update(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            h = tf.tanh(tf.nn.conv2d(x, kernel, 2, "SAME"))
            y = tf.reduce_sum(tf.square(tf.reshape(h, (5, -1)) @ last))
        of_x, of_kernel, of_last = tape.gradient(y, [x, kernel, last])
        kernel.assign_sub(of_kernel)
        last.assign_sub(of_last)
        return of_x

    operations = step_graph.executed(Step(update), (5, 8, 8, 3))
    # Forward, to the input and to the kernel, each 5 images of 4 x 4 pixels.
    convolution, dense = (5 * 4 * 4, 4 * 4 * 3, 6), (5, 4 * 4 * 6, 7)
    sizes = step_graph.products(operations)
    expected = [convolution, dense] * 3
    assert sorted(map(sorted, sizes)) == sorted(map(sorted, expected))
    assert step_cases.flops(sizes) == 3 * 2 * (80 * 48 * 6 + 5 * 96 * 7)


def test_a_transposed_convolution_is_counted_by_hand():
    kernel = tf.Variable(tf.ones((4, 4, 6, 3)))  # to 6 channels from 3

    def update(x):
        return tf.nn.conv2d_transpose(x, kernel, (5, 8, 8, 6), 2)

    sizes = step_graph.products(step_graph.executed(Step(update), (5, 4, 4, 3)))
    assert sizes == [(5 * 4 * 4, 3, 4 * 4 * 6)]


def test_bytes_and_starts_are_counted_by_hand():
    state = tf.Variable(tf.zeros((10, 6)))

    def update(x):
        y = tf.tanh(x) * state  # 2 and 3 arrays of 10 x 6 floats
        state.assign_add(y)  # 3
        return tf.reshape(y, (60,))

    operations = step_graph.executed(Step(update), (10, 6))
    assert step_graph.moved_bytes(operations) == (2 + 3 + 3) * 4 * 60
    kinds = sorted(o.kind for o in operations if o.kind not in step_graph.NOT_LAUNCHED)
    assert [k for k in kinds if k not in step_graph.FREE] == ["AssignAddVariableOp", "Mul", "Tanh"]
    assert step_graph.launched(operations) == len(kinds)


def test_a_loop_counts_as_often_as_it_runs():
    kernel, state = tf.Variable(tf.ones((6, 6))), tf.Variable(tf.zeros((10, 6)))

    def update(x):
        rows = tf.shape(x)[0]

        def body(k):
            state.assign_add(tf.random.stateless_normal((rows, 6), (0, k)) @ kernel)
            return k + 1

        tf.while_loop(lambda k: k < 3, body, [0])
        return state.read_value()

    operations = step_graph.executed(Step(update, 3), (10, 6))
    assert step_graph.products(operations) == 3 * [(10, 6, 6)]
    draw = [o for o in operations if o.kind == "StatelessRandomNormalV2"]
    assert [o.times for o in draw] == [3]


@pytest.mark.parametrize("alternating", [False, True])
def test_the_products_are_those_of_the_formula(alternating):
    case = {"density": RESIDUAL, "batch": 7}
    if alternating:
        case |= {"generator": RESIDUAL | {"outputs": 2}, "dde_steps": 2}
    sizes = step_graph.products(step_graph.executed(step_cases.tfdde_model(case), (7, 2)))
    expected = step_cases.products(case)
    if not alternating:
        expected.remove((7, 8, 1))  # s itself, which TensorFlow finds that nothing uses
    assert step_cases.flops(sizes) == step_cases.flops(expected)


def test_an_unknown_kind_of_product_is_refused():
    def update(x):
        return tf.matmul(x, x, transpose_b=True)  # of three dimensions: a batch of products

    operations = step_graph.executed(Step(update), (2, 3, 4))
    with pytest.raises(ValueError, match="BatchMatMul"):
        step_graph.products(operations)


def test_bounds_add_up():
    times = {"step": 9.0, "products": 3.0, "chain": 2.0 + 0.999, "call": 2.0, "move 4096": 2.1}
    found = roofline.bounds(times, {4096: 4096_000}, launched=50)
    assert found["empty"] == pytest.approx(0.001)
    assert found["starting"] == pytest.approx(0.05)
    assert found["moving"] == pytest.approx(1000 * (0.1 / roofline.MAXIMA - 0.001))
    assert found["least"] == pytest.approx(3.0 + found["moving"] + found["starting"])
