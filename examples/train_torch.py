"""An ordinary PyTorch training on scikit-learn's digits; ``--backend bngen`` is all of bngen in it.

``--backend eager`` is PyTorch as it is, ``inductor`` its own compiler. From one seed all three see
the same batches from the same weights. ``--dtype bfloat16`` trains under PyTorch's autocast. Each
epoch ends with validation and a checkpoint; a run that was interrupted goes on with ``--resume``.
``--plot`` draws the runs that a folder holds.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3; what comes in goes out beside it."""

    def __init__(self, channels, growth):
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
        )
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        """``[N, C, H, W]`` -> ``[N, C + growth, H, W]``."""
        y = self.conv1(self.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """A DenseNet-BC for small images."""

    def __init__(self, growth, layers):
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False))
        for block, count in enumerate(layers):
            if block:
                self.features.append(nn.BatchNorm2d(channels)).append(nn.ReLU(inplace=True))
                self.features.append(nn.Conv2d(channels, channels // 2, 1, bias=False))
                self.features.append(nn.AvgPool2d(2))
                channels //= 2
            for _ in range(count):
                self.features.append(DenseLayer(channels, growth))
                channels += growth
        self.features.append(nn.BatchNorm2d(channels)).append(nn.ReLU(inplace=True))
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x):
        """Images ``[N, 1, H, W]`` -> logits ``[N, 10]``."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def loaders(batch, size):
    """Training and validation batches; the last of either is smaller."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, size=size, mode="bilinear")
    parts = train_test_split(
        images, torch.tensor(labels), test_size=0.25, random_state=0, stratify=labels
    )
    x, x_test, y, y_test = parts
    order = torch.Generator().manual_seed(0)
    return (
        DataLoader(TensorDataset(x, y), batch, shuffle=True, generator=order),
        DataLoader(TensorDataset(x_test, y_test), 2 * batch),
    )


def train(model, batches, optimizer, precision, log):
    """One epoch; a loss and a time for each step."""
    model.train()
    for x, labels in batches:
        start = time.perf_counter()
        with precision:
            loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log["loss"].append(loss.item())
        log["seconds"].append(time.perf_counter() - start)


@torch.no_grad()
def accuracy(model, batches, precision):
    model.eval()
    with precision:
        right = sum((model(x).argmax(1) == labels).sum().item() for x, labels in batches)
    return right / len(batches.dataset)


def run(options):
    torch.manual_seed(options.seed)
    model = DenseNet(options.growth, options.layers)
    training, validation = loaders(options.batch, options.size)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    log = {"loss": [], "seconds": [], "accuracy": []}
    narrow = options.dtype == "bfloat16"
    precision = torch.autocast("cpu", torch.bfloat16, enabled=narrow)

    options.out.mkdir(parents=True, exist_ok=True)
    name = options.backend + "-bfloat16" * narrow
    checkpoint = options.out / f"{name}.pt"
    if options.resume and checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        training.generator.set_state(saved["order"])
        log = saved["log"]

    if options.backend != "eager":
        model.compile(backend=options.backend)  # in place: the keys of state_dict() stay

    first = len(log["accuracy"])
    for _ in track(range(first, options.epochs), name):
        train(model, training, optimizer, precision, log)
        scheduler.step()
        log["accuracy"].append(accuracy(model, validation, precision))
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
        saved |= {"scheduler": scheduler.state_dict(), "order": training.generator.get_state()}
        torch.save(saved, checkpoint)
    (options.out / f"{name}.json").write_text(json.dumps(log))
    print(f"{name}: test accuracy {log['accuracy'][-1]:.2%}, loss {log['loss'][-1]:.4f}")


def plot(folder):
    """Loss and time of each step, of all runs in a folder."""
    from matplotlib import pyplot as plt

    figure, (losses, times) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    # Those of train_distributed.py, which writes here too, have no times.
    runs = (p for p in sorted(folder.glob("*.json")) if not p.name.startswith("distributed-"))
    for path in runs:
        log = json.loads(path.read_text())
        losses.plot(log["loss"], label=path.stem, linewidth=1)
        times.plot([1000 * s for s in log["seconds"]], label=path.stem, linewidth=1)
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    times.set(xlabel="step", ylabel="ms a step", yscale="log")
    losses.legend()
    figure.savefig(folder / "training.png", dpi=150)
    print(f"wrote {folder / 'training.png'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("eager", "inductor", "bngen"), default="bngen")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=16, help="height and width of the images")
    parser.add_argument("--growth", type=int, default=12)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 4, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument(
        "--plot", action="store_true", help="draw what the folder holds, no training"
    )
    options = parser.parse_args()
    if options.plot:
        plot(options.out)
    else:
        run(options)


if __name__ == "__main__":
    main()
