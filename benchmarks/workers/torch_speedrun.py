"""Trains a plain ResNet in torch the ordinary way, and says how well it did after each epoch. See speedrun.py.

Nesterov SGD, a cosine, weight decay, random crops and mirror images, batches of 128, channels last. The net is
configs/resnet.py:fashion_mnist's, of the stages and width that are asked for. Needs torch and NumPy.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BATCH, LR, MOMENTUM, DECAY, PADDING = 128, 0.1, 0.9, 5e-4, 2
MEAN, STD = 0.2860, 0.3530


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] -> [B,width,H/stride,W/stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def resnet(stage_sizes: list[int], width: int) -> nn.Module:
    """A 3x3 stem at stride 2, stages of blocks, mean, classifier."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, size in enumerate(stage_sizes):
        for i in range(size):
            layers.append(Block(inputs, width * 2**stage, 2 if stage and not i else 1))
            inputs = width * 2**stage
    for layer in (module for block in layers for module in block.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to PADDING pixels, zeros (black) around, and mirrored or not: [B,1,H,W]."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (PADDING,) * 4, value=-MEAN / STD)[:, 0]
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1, 1))
    columns = torch.arange(width).expand(count, 1, width)
    columns = torch.where(torch.rand(count, 1, 1) < 0.5, columns, width - 1 - columns)
    rows = torch.arange(height).view(1, height, 1) + top
    return padded[torch.arange(count).view(-1, 1, 1), rows, columns + left][:, None]


def main() -> None:
    """The command line."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="npz with train_images, train_labels, test_images, test_labels")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--stage_sizes", type=int, nargs="+", required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = np.load(args.data)
    images, tests = ((torch.from_numpy(data[f"{s}_images"]).permute(0, 3, 1, 2) / 255 - MEAN) / STD for s in SPLITS)
    labels, answers = (torch.from_numpy(data[f"{s}_labels"]).long() for s in SPLITS)
    net = resnet(args.stage_sizes, args.width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), LR, MOMENTUM, weight_decay=DECAY, nesterov=True)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * steps)
    for epoch in range(1, args.epochs + 1):
        net.train()
        began = time.perf_counter()
        for rows in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            batch = augmented(images[rows]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(net(batch), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        rate = steps * BATCH / (time.perf_counter() - began)
        net.eval()
        with torch.inference_mode():
            found = torch.cat([net(x).argmax(1) for x in tests.split(500)])
        right = (found == answers).sum().item()
        said = {"epoch": epoch, "top1": right / len(tests), "seconds": time.perf_counter() - start}
        said |= {"images_per_second": rate, "parameters": sum(p.numel() for p in net.parameters())}
        print(json.dumps(said), flush=True)


SPLITS = ("train", "test")

if __name__ == "__main__":
    main()
