"""Define layers that read memory fewer times than the layers of torch when compiled or run on a GPU.

Results differ from those of the torch layers only by rounding. The layers of torch have these costs:

- ReLU: the compiled backward pass reads the output of the activation in addition to its input.
- Max pooling: the backward pass scatters gradients into a tensor of zeros.
- 3 x 3 average pooling: on a GPU, the pooling takes ten times as long as reading the input.
- Convolution of an image with one channel: on a GPU, the convolution takes several times as long as a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def layout_of(features: torch.Tensor) -> torch.memory_format:
    """Return the memory format of a tensor (B, C, h, w): `torch.channels_last` or `torch.contiguous_format`."""
    last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class ReLU(nn.ReLU):
    """ReLU with a compiled backward pass that reads only the input of the layer."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling():
            return torch.where(features <= 0, 0.0, features)  # `<=` rather than `>`, so that NaN stays NaN
        return F.relu(features, self.inplace)


class StridedMaxPool(nn.MaxPool2d):
    """3 x 3 max pooling with stride 2, which maps (B, C, h, w) to (B, C, (h - 1) // 2, (w - 1) // 2)."""

    def __init__(self) -> None:
        super().__init__(3, stride=2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling():
            largest: torch.Tensor = _Largest.apply(features)
            return largest
        return super().forward(features)


class StemConv(nn.Conv2d):
    """3 x 3 convolution with stride 2 for images with one channel, computed as a matrix product on a GPU.

    The layer maps (B, 1, S, S) to (B, C, (S - 1) // 2, (S - 1) // 2).

    Args:
        channels: number of output channels, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels, 3, stride=2, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.as_product(image) if image.is_cuda else super().forward(image)

    def as_product(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the convolution of images (B, 1, S, S) as a matrix product.

        The rows of the matrices are padded from 9 to 16 elements for tensor cores.
        """
        places = image.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4)[:, 0]  # (B, h, w, 9)
        kernel = F.pad(self.weight.flatten(1), (0, 7))
        return F.linear(F.pad(places, (0, 7)), kernel, self.bias).permute(0, 3, 1, 2)


class AvgPool3x3(nn.AvgPool2d):
    """3 x 3 average pooling with stride 1. Averages at the border exclude the padding."""

    def __init__(self) -> None:
        super().__init__(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_dynamo_compiling() or features.is_cuda:
            average: torch.Tensor = _AvgPool3x3.apply(features)
            return average
        return super().forward(features)


class _AvgPool3x3(torch.autograd.Function):
    """Autograd function that computes 3 x 3 average pooling as a sum of shifted tensors.

    The sum of shifted tensors is self-adjoint, so the backward pass also uses this sum.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        return _sums(features) / _places(features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _sums(gradient / _places(gradient))


def _sums(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of the 3 x 3 window around each pixel of a tensor (B, C, h, w), in the same shape.

    Pixels outside the image are treated as 0.
    """
    height, width = values.shape[2:]
    padded = F.pad(values, (1, 1, 1, 1))
    along = sum((padded[..., shift : shift + width] for shift in (1, 2)), padded[..., :width])
    return sum((along[..., shift : shift + height, :] for shift in (1, 2)), along[..., :height, :])


def _places(values: torch.Tensor) -> torch.Tensor:
    """Return the number of pixels of each 3 x 3 window that lie inside the image, as a tensor (h, w).

    Args:
        values: (B, C, h, w) tensor with the size, device and data type of the result.
    """
    sides = [torch.arange(side, device=values.device) for side in values.shape[2:]]
    rows, columns = (3 - (side == 0).int() - (side == len(side) - 1).int() for side in sides)
    return (rows[:, None] * columns).to(values.dtype)


class _Largest(torch.autograd.Function):
    """Autograd function of 3 x 3 max pooling with stride 2 that saves the position of each maximum as int8.

    A position is the index of the maximum within its window. In the backward pass, each input pixel checks all windows
    that contain it (at most four). This method needs no atomic additions and no tensor of zeros.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:
        largest, index = F.max_pool2d(features, 3, stride=2, return_indices=True)
        (height, width), side = largest.shape[2:], features.shape[3]
        down = index // side - 2 * torch.arange(height, device=index.device)[:, None]
        right = index % side - 2 * torch.arange(width, device=index.device)
        place = (3 * down + right).to(torch.int8)
        ctx.save_for_backward(place)
        ctx.size, ctx.layout = features.shape[2:], layout_of(features)
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (place,) = ctx.saved_tensors
        total: torch.Tensor | float = 0.0
        for up in (0, 1):
            for left in (0, 1):
                rows, columns = (
                    torch.arange(side, device=place.device) % 2 + 2 * back
                    for side, back in zip(ctx.size, (up, left), strict=True)
                )
                inside = (rows[:, None] < 3) & (columns < 3)
                number = torch.where(inside, 3 * rows[:, None] + columns, -2)
                chosen = _spread(place, ctx.size, up, left, -1) == number
                total = total + torch.where(chosen, _spread(gradient, ctx.size, up, left, 0), 0.0)
        assert isinstance(total, torch.Tensor)
        return total.contiguous(memory_format=ctx.layout)


def _spread(windows: torch.Tensor, size: torch.Size, up: int, left: int, elsewhere: int) -> torch.Tensor:
    """Assign to each input pixel of a 3 x 3 pooling with stride 2 the value of one window, given by `up` and `left`.

    Several overlapping windows can contain a pixel. The pixel (r, c) gets the value of the window (r // 2 - up, c // 2
    - left).

    Args:
        windows: (B, C, h, w) one value per window.
        size: height and width of the pooling input.
        up, left: number of windows (0 or 1) by which the selected window lies above, or to the left of, the window
            (r // 2, c // 2).
        elsewhere: value of pixels for which the selected window does not exist.

    Returns:
        (B, C, height, width).
    """
    height, width = windows.shape[2:]
    doubled = windows[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4).flatten(2, 3)
    below, right = size[0] - 2 * height - 2 * up, size[1] - 2 * width - 2 * left
    return F.pad(doubled, (2 * left, right, 2 * up, below), value=elsewhere)
