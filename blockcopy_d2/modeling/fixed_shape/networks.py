"""
The layers of Detectron2's box, mask and keypoint heads and of MGAN's attention, with weights
prepared once for a dtype and for channels-last features.

Shape shorthand in this module:

    R: regions of all images
    C: channels of the features
    P: side of the pooled features of a region
    M: side of a mask, 2 P
    K: classes
    J: keypoints of a region
"""

import copy

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F

from .mask_selection import select_masks

__all__ = ["AttentionNetwork", "BoxNetwork", "KeypointNetwork", "MaskNetwork", "Res5BoxNetwork"]


class BoxNetwork(nn.Module):
    """FastRCNNConvFCHead and FastRCNNOutputLayers, after MaskAttention if there is any."""

    def __init__(self, head, predictor, side, dtype, *, attention=None):
        """
        Args:
            head (FastRCNNConvFCHead): with one fully connected layer at least; copied.
            predictor (FastRCNNOutputLayers): copied.
            side (int): P.
            dtype (torch.dtype):
            attention (MaskAttention or None): copied.
        """
        super().__init__()
        self.convs = _convolutions(head.conv_norm_relus, dtype)
        if attention is not None:
            self.convs.insert(0, AttentionNetwork(attention, dtype))
        self.fcs = _copy(nn.ModuleList(head.fcs), dtype)
        first = self.fcs[0].weight
        # The first layer takes features as they lie in memory, (P, P, C), not (C, P, P).
        weight = first.view(len(first), -1, side, side).permute(0, 2, 3, 1).flatten(1)
        self.fcs[0].weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.outputs = _OutputLayers(predictor, dtype)

    def forward(self, x):
        """
        Args:
            x (Tensor): (R, C, P, P).

        Returns:
            tuple[Tensor, Tensor]: class logits (R, K + 1) and deltas (R, 4 K or 4).
        """
        x = self.convs(x).permute(0, 2, 3, 1).flatten(1)
        for fc in self.fcs:
            x = _linear_relu(x, fc.weight, fc.bias)
        return self.outputs(x)


class Res5BoxNetwork(nn.Module):
    """The box head of Res5ROIHeads: a stage of a ResNet, and FastRCNNOutputLayers on its mean."""

    def __init__(self, res5, predictor, dtype):
        """
        Args:
            res5 (nn.Sequential): copied.
            predictor (FastRCNNOutputLayers): copied.
            dtype (torch.dtype):
        """
        super().__init__()
        self.res5 = _copy(res5, dtype)
        for copied, norm in zip(self.res5.modules(), res5.modules(), strict=True):
            if isinstance(norm, FrozenBatchNorm2d | nn.modules.batchnorm._BatchNorm):
                # Statistics keep their precision, as under autocast.
                copied.float().load_state_dict(norm.state_dict())
        self.outputs = _OutputLayers(predictor, dtype)

    def forward(self, x):
        """See :meth:`BoxNetwork.forward`."""
        return self.outputs(self.res5(x).mean(dim=(2, 3)))


# Outputs of a matrix product are padded to a multiple of these: cuBLAS has its fast kernels, which
# write 16 bytes at a time, for such alone.
_OUTPUTS_TOGETHER = 8


class _OutputLayers(nn.Module):
    """FastRCNNOutputLayers as one matrix product."""

    def __init__(self, predictor, dtype):
        super().__init__()
        outputs = _copy(nn.ModuleList([predictor.cls_score, predictor.bbox_pred]), dtype)
        weight = torch.cat([x.weight for x in outputs])
        bias = torch.cat([x.bias for x in outputs])
        missing = -len(weight) % _OUTPUTS_TOGETHER
        self.weight = nn.Parameter(F.pad(weight, (0, 0, 0, missing)), requires_grad=False)
        self.bias = nn.Parameter(F.pad(bias, (0, missing)), requires_grad=False)
        self.ends = predictor.cls_score.out_features, len(weight)

    def forward(self, x):
        scores, deltas, _ = F.linear(x, self.weight, self.bias).tensor_split(self.ends, dim=1)
        return scores, deltas


class AttentionNetwork(nn.Module):
    """MaskAttention of MGAN."""

    def __init__(self, attention, dtype):
        """
        Args:
            attention (MaskAttention): copied.
            dtype (torch.dtype):
        """
        super().__init__()
        self.convs = _convolutions([attention.conv1, attention.conv2], dtype)
        self.predictor = _copy(attention.predictor, dtype)
        self.weighs_regions = attention.attended == "regions"

    def forward(self, x):
        """
        Args:
            x (Tensor): (R, C, P, P).

        Returns:
            Tensor: (R, C, P, P), see :meth:`MaskAttention.weigh`.
        """
        convolved = self.convs(x)
        weights = self.predictor(convolved).sigmoid()
        return (x if self.weighs_regions else convolved) * weights


class MaskNetwork(nn.Module):
    """MaskRCNNConvUpsampleHead, with the upsampling as a matrix product per pixel."""

    def __init__(self, head, dtype, *, stem=None):
        """
        Args:
            head (MaskRCNNConvUpsampleHead): copied.
            dtype (torch.dtype):
            stem (nn.Module or None): runs before the head.
        """
        super().__init__()
        self.stem = nn.Identity() if stem is None else stem
        self.convs = _convolutions(head.conv_norm_relus, dtype)
        deconv = _copy(head.deconv, dtype)
        # Each pixel makes 2 x 2 pixels by itself.
        weight = deconv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        self.up_weight = nn.Parameter(weight, requires_grad=False)
        self.up_bias = nn.Parameter(deconv.bias.repeat(4), requires_grad=False)
        predictor = _copy(head.predictor, dtype)
        self.weight = nn.Parameter(predictor.weight.flatten(1), requires_grad=False)
        self.bias = predictor.bias

    def forward(self, x, classes):
        """
        Args:
            x (Tensor): (R, C, P, P).
            classes (Tensor): int64 (R,), the classes whose masks are wanted.

        Returns:
            Tensor: probabilities, float32 (R, M, M).
        """
        x = self.convs(self.stem(x)).permute(0, 2, 3, 1)
        regions, side = x.shape[:2]
        x = _linear_relu(x, self.up_weight, self.up_bias)
        x = F.linear(x.view(regions, side * side * 4, -1), self.weight, self.bias)
        return select_masks(x, classes)


class KeypointNetwork(nn.Module):
    """KRCNNConvDeconvUpsampleHead."""

    def __init__(self, head, dtype):
        """
        Args:
            head (KRCNNConvDeconvUpsampleHead): copied.
            dtype (torch.dtype):
        """
        super().__init__()
        self.head = _copy(head, dtype)

    def forward(self, x):
        """
        Args:
            x (Tensor): (R, C, P, P).

        Returns:
            Tensor: logits of a heatmap for each of J keypoints, float32 (R, J, 4 P, 4 P).
        """
        return self.head.layers(x).float()


class _ConvRelu(nn.Module):
    """A convolution with a bias and a ReLU, which cuDNN computes in one launch."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        conv = self.conv
        if not x.is_cuda:
            return conv(x)
        options = conv.stride, conv.padding, conv.dilation, conv.groups
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *options)


def _convolutions(convs, dtype):
    convs = [_copy(conv, dtype) for conv in convs]
    return nn.Sequential(*(_ConvRelu(conv) if _is_plain(conv) else conv for conv in convs))


def _is_plain(conv):
    """Returns whether a layer of Detectron2 is a convolution with a bias and a ReLU alone."""
    relu = isinstance(conv.activation, nn.ReLU) or conv.activation in (F.relu, F.relu_)
    return relu and conv.norm is None and conv.bias is not None


def _linear_relu(x, weight, bias):
    """Returns relu(x weight^T + bias), of which a GPU makes one launch."""
    y = torch._addmm_activation(bias, x.flatten(0, -2), weight.t())
    return y.view(*x.shape[:-1], -1)


def _copy(module, dtype):
    module = copy.deepcopy(module).to(dtype=dtype, memory_format=torch.channels_last)
    return module.eval().requires_grad_(False)
