"""The training of ``train_torch.py`` by several processes, which ``torchrun`` starts.

Each process, a rank, takes its share of every batch; DistributedDataParallel adds up the gradients.
With ``--sync-bn`` batch normalization is that of the whole batch, and the training that of one
process; PyTorch has that on GPUs alone. Without it each rank normalizes its own share.

Every epoch ends with a checkpoint, from which the next start goes on: a run that was killed gives
the numbers of one that was not.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from train_torch import DenseNet, loaders

import bngen


def share(tensor):
    """This rank's part of a batch; parts differ by one at most, and may be empty."""
    return tensor.tensor_split(dist.get_world_size())[dist.get_rank()]


def train(model, batches, optimizer):
    """One epoch; the loss of each batch, the mean over all its images."""
    model.train()
    losses = []
    for x, labels in batches:
        total = F.cross_entropy(model(share(x)), share(labels), reduction="sum") / len(x)
        optimizer.zero_grad()
        # Gradients are averaged over the ranks, and what is wanted is their sum.
        (total * dist.get_world_size()).backward()
        optimizer.step()
        loss = total.detach().clone()
        dist.all_reduce(loss)
        losses.append(loss.item())
    return losses


@torch.no_grad()
def accuracy(model, batches):
    model.eval()
    right = torch.zeros(())
    for x, labels in batches:
        right += (model(share(x)).argmax(1) == share(labels)).sum()
    dist.all_reduce(right)
    return right.item() / len(batches.dataset)


def save(path, **parts):
    """All of a checkpoint or none of it, whenever this process is ended."""
    if dist.get_rank() == 0:
        new = path.with_suffix(".new")
        torch.save(parts, new)
        os.replace(new, path)
    dist.barrier()


def run(options):
    torch.manual_seed(options.seed)
    model = DenseNet(options.growth, options.layers)
    training, validation = loaders(options.batch, options.size)
    if options.backend == "bngen":
        bngen.compile(model, sync_bn=options.sync_bn)
    elif options.sync_bn:
        bngen.synchronize(model)
    # Gradients lie where they are exchanged from, which saves a copy of each.
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    log = {"loss": [], "accuracy": []}

    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / f"distributed-{options.backend}.pt"
    if checkpoint.exists() and not options.fresh:
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        training.generator.set_state(saved["order"])
        log = saved["log"]

    for epoch in range(len(log["accuracy"]), options.epochs):
        log["loss"].append(train(parallel, training, optimizer))
        log["accuracy"].append(accuracy(model, validation))
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {log['loss'][-1][-1]:.4f}, "
                  f"test accuracy {log['accuracy'][-1]:.2%}", flush=True)  # fmt: skip
        save(
            checkpoint, model=model.state_dict(), optimizer=optimizer.state_dict(), log=log,
            order=training.generator.get_state(),
        )  # fmt: skip
    if dist.get_rank() == 0:
        (options.out / f"distributed-{options.backend}.json").write_text(json.dumps(log))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("eager", "bngen"), default="bngen")
    parser.add_argument("--sync-bn", action="store_true", help="statistics of the whole batch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64, help="images of all ranks together")
    parser.add_argument("--size", type=int, default=16, help="height and width of the images")
    parser.add_argument("--growth", type=int, default=12)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 4, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--fresh", action="store_true", help="do not go on from a checkpoint")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        run(options)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
