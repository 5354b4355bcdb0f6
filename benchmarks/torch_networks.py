"""The peers of `benchmarks.throughput`: a ResNet-18 in PyTorch with the same layers as `nc_jax.models.ResNet`."""

# PyTorch is in the extra `bench`, which may not be installed where the linter runs.
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def resnet18(width: int, num_classes: int) -> Any:
    """Return the network with the stem for small images. Its modules have the names of `nc_jax.models.ResNet`.

    Args:
        width: channels of the stem.
        num_classes: number of classes of the linear classifier.
    """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.last_norm = nn.BatchNorm2d(outputs)
            if inputs != outputs or stride != 1:
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.shortcut_norm = nn.BatchNorm2d(outputs)

        def forward(self, x):
            branch = self.last_norm(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
            if hasattr(self, "shortcut"):
                x = self.shortcut_norm(self.shortcut(x))
            return torch.relu(x + branch)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            self.stem_norm = nn.BatchNorm2d(width)
            inputs = width
            for stage in range(4):
                for index in range(2):
                    outputs = width * 2**stage
                    block = Block(inputs, outputs, 2 if stage and not index else 1)
                    setattr(self, f"stage{stage + 1}_block{index + 1}", block)
                    inputs = outputs
            self.head = nn.Linear(inputs, num_classes)

        def forward(self, x):
            x = torch.relu(self.stem_norm(self.stem(x)))
            for stage in range(4):
                for index in range(2):
                    x = getattr(self, f"stage{stage + 1}_block{index + 1}")(x)
            return self.head(x.mean((2, 3)).float())

    network: Any = Network()
    return network.to(memory_format=torch.channels_last)


def copy_parameters(network: Any, params: Mapping[str, Any]) -> None:
    """Copy the parameters of a `Classifier` (ResNet and LearnedHead) into the PyTorch network."""
    import torch

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32))

    def fill(module: Any, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                fill(getattr(module, name), value)
            elif name == "kernel":
                value = tensor(value)
                module.weight.data.copy_(value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T)
            else:
                getattr(module, "weight" if name == "scale" else name).data.copy_(tensor(value))

    fill(network, params["backbone"])
    fill(network, {"head": params["head"]})


def training_step(
    network: Any,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    device: str,
    bfloat16: bool,
    compiled: bool,
    learning_rate: float,
    momentum: float,
) -> Callable[[], float]:
    """Return a function that takes one SGD step on the batch and returns its loss.

    Args:
        network: network from `resnet18`.
        features: images (N, height, width, 3).
        labels: class numbers (N,).
        device: PyTorch's name of the device.
        bfloat16: use PyTorch's autocast to bfloat16; parameters stay float32.
        compiled: use `torch.compile`.
        learning_rate: learning rate of SGD.
        momentum: momentum of SGD.
    """
    import torch

    network = network.to(device)
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), learning_rate, momentum)
    images = torch.from_numpy(features).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = run(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    return step
