"""Trains a small network with batch normalization on scikit-learn's digits, with bngen alone.

One compiled program is one training step: forward, backward and the update by SGD, in place. A
second program, the same network in evaluation mode, takes the trained state and judges it.

    python examples/train_digits.py --dtype bfloat16

computes with bfloat16 as `torch.autocast` does, weights and statistics in float32.
"""

import argparse
import math

import numpy as np
from rich.progress import Progress, TextColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import bngen as bg

BATCH, EPOCHS, RATE = 64, 15, 0.1


def network(x, training):
    """Three composite layers and a residual sum; logits of ten digits."""

    def conv(x, name, channels, stride=1):
        return bg.layers.conv2d(x, name, channels, 3, stride=stride, padding=1, bias=False)

    x = bg.relu(bg.layers.batch_norm(conv(x, "conv1", 16), "norm1", training))
    x = bg.relu(bg.layers.batch_norm(conv(x, "conv2", 32, stride=2), "norm2", training))
    y = bg.layers.batch_norm(conv(x, "conv3", 32), "norm3", training)
    x = bg.relu(x + y)
    return bg.layers.linear(x.mean((2, 3)), "classifier", 10)


def compile_programs(test_images, dtype):
    def loss(x, labels):
        return bg.cross_entropy(network(x, training=True), labels)

    def predict(x):
        return network(x, training=False)

    meant = bg.autocast if dtype == "bfloat16" else lambda program: program
    program = bg.trace(loss, bg.Tensor[BATCH, 1, 8, 8], bg.Tensor[BATCH, bg.int64])
    optimizer = bg.SGD(lr=None, momentum=0.9, weight_decay=1e-4, nesterov=True)
    step = bg.build(bg.training_step(meant(program), optimizer))
    return step, bg.build(meant(bg.trace(predict, bg.Tensor[test_images, 1, 8, 8])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    x, x_test, y, y_test = train_test_split(
        images, labels.astype(np.int64), test_size=0.25, random_state=0, stratify=labels
    )
    step, predict = compile_programs(len(x_test), options.dtype)
    step.init(seed=options.seed)

    rng = np.random.default_rng(options.seed)
    steps = EPOCHS * (len(x) // BATCH)
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan)
        for _ in range(EPOCHS):
            for batch in np.split(
                rng.permutation(len(x))[: len(x) // BATCH * BATCH], len(x) // BATCH
            ):
                done = progress.tasks[task].completed / steps
                rate = np.float32(RATE * 0.5 * (1 + math.cos(math.pi * done)))
                loss = step(x[batch], y[batch], rate)
                progress.update(task, advance=1, loss=float(loss))

    state = step.state_dict()
    predict.load_state_dict({name: state[name] for name in predict.state_dict()})
    accuracy = np.mean(predict(x_test).argmax(axis=1) == y_test)
    print(f"test accuracy {accuracy:.2%} on {len(x_test)} images")


if __name__ == "__main__":
    main()
