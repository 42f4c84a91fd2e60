"""
CSP and MGAN in plain PyTorch, a few channels wide, written from their description. The modules are
named so that the state dicts are those of the public checkpoints. Boxes end on their last pixel.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]


def named(**modules):
    return nn.ModuleDict(modules)


class Bottleneck(nn.Module):
    def __init__(self, in_channels, width, out_channels, stride, dilation):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if in_channels != out_channels or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Stage strides 1 2 2 1, dilation 2 in all of stage 4; returns stages 2, 3 and 4."""

    def __init__(self, stem, width, out_channels):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        in_channels = stem
        for stage, (depth, stride, dilation) in enumerate(
            [(3, 1, 1), (4, 2, 1), (6, 2, 1), (3, 1, 2)], start=1
        ):
            blocks = []
            for block in range(depth):
                first = stride if block == 0 else 1
                blocks.append(Bottleneck(in_channels, width, out_channels, first, dilation))
                in_channels = out_channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            width, out_channels = 2 * width, 2 * out_channels

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        stage_2 = self.layer2(self.layer1(x))
        stage_3 = self.layer3(stage_2)
        return stage_2, stage_3, self.layer4(stage_3)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()) + 0.5)


class Norm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) * 10 + 5)

    def forward(self, x):
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        return self.weight.view(1, -1, 1, 1) * (x / norm)


class PublishedCSP(nn.Module):
    def __init__(self, stem=8, width=8, out_channels=16, neck=8, head=32):
        super().__init__()
        self.backbone = ResNet50(stem, width, out_channels)
        channels = [2 * out_channels, 4 * out_channels, 8 * out_channels]
        self.neck = named(
            p3=nn.ConvTranspose2d(channels[0], neck, 4, stride=2, padding=1),
            p4=nn.ConvTranspose2d(channels[1], neck, 4, stride=4),
            p5=nn.ConvTranspose2d(channels[2], neck, 4, stride=4),
            p3_l2=Norm(neck),
            p4_l2=Norm(neck),
            p5_l2=Norm(neck),
        )
        self.bbox_head = named(
            csp_cls=nn.Conv2d(head, 1, 3, padding=1),
            csp_reg=nn.Conv2d(head, 1, 3, padding=1),
            csp_offset=nn.Conv2d(head, 2, 3, padding=1),
            reg_scales=nn.ModuleList([Scale()]),
            offset_scales=nn.ModuleList([Scale()]),
        )
        for name in ("cls_convs", "reg_convs", "offset_convs"):
            conv = nn.Conv2d(3 * neck, head, 3, padding=1, bias=False)
            branch = named(conv=conv, gn=nn.GroupNorm(32, head))
            self.bbox_head[name] = nn.ModuleList([branch])

    def maps(self, image):
        """(3, H, W) in [0, 255], RGB, H and W divisible by 16."""
        features = self.backbone(((image - MEAN) / STD)[None])
        x = torch.cat(
            [
                self.neck[f"{level}_l2"](self.neck[level](feature))
                for level, feature in zip(("p3", "p4", "p5"), features)
            ],
            dim=1,
        )
        head = self.bbox_head

        def branch(convs, last):
            (layer,) = head[convs]
            return head[last](F.relu(layer["gn"](layer["conv"](x))))

        return (
            branch("cls_convs", "csp_cls"),
            branch("reg_convs", "csp_reg") * head["reg_scales"][0].scale,
            branch("offset_convs", "csp_offset") * head["offset_scales"][0].scale,
        )

    def detect(self, image):
        """Scores (n,) and boxes (n, 4), best first."""
        center, height, offset = (x[0] for x in self.maps(image))
        scores, boxes = [], []
        for row in range(center.shape[1]):
            for column in range(center.shape[2]):
                score = 1 / (1 + math.exp(-center[0, row, column]))
                h = math.exp(height[0, row, column]) * 4
                w = 0.41 * h
                y = 4 * row + 2 + 4 * offset[0, row, column].item()
                x = 4 * column + 2 + 4 * offset[1, row, column].item()
                scores.append(score)
                boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        scores, boxes = torch.tensor(scores), torch.tensor(boxes)
        scores, order = scores.topk(min(1000, len(scores)))
        boxes = clamp(boxes[order], image.shape[1:], 1)
        boxes, scores = boxes[scores > 0.1], scores[scores > 0.1]
        keep = suppress(boxes, 0.5, 1)[:100]
        return scores[keep], boxes[keep]


class PublishedMGAN(nn.Module):
    SCALES = (4, 5.4, 7.2, 9.8, 13.2, 17.9, 24.2, 33, 44.1, 59.6, 80)

    def __init__(self, *, pedestron=True, channels=(8, 8, 16, 16, 16), fc=32):
        """Its attention multiplies the features that it sees, or in Pedestron its own."""
        super().__init__()
        self.pedestron = pedestron
        layers, in_channels = [], 3
        for out_channels, depth in zip(channels, (2, 2, 3, 3, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU()]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        c = channels[-1]
        self.backbone = named(features=nn.Sequential(*layers))
        self.rpn_head = named(
            rpn_conv=nn.Conv2d(c, c, 3, padding=1),
            rpn_cls=nn.Conv2d(c, len(self.SCALES), 1),
            rpn_reg=nn.Conv2d(c, 4 * len(self.SCALES), 1),
        )
        self.mgan_head = named(
            convs=nn.ModuleList([named(conv=nn.Conv2d(c, c, 3, padding=1)) for _ in range(2)]),
            conv_logits=nn.Conv2d(c, 1, 1),
        )
        self.bbox_head = named(
            shared_fcs=nn.ModuleList([nn.Linear(c * 7 * 7, fc), nn.Linear(fc, fc)]),
            fc_cls=nn.Linear(fc, 2),
            fc_reg=nn.Linear(fc, 8),
        )

    def features(self, image):
        """(3, H, W) in [0, 255], RGB, H and W divisible by 8."""
        x = ((image - MEAN) / STD)[None]
        for index, layer in enumerate(self.backbone["features"]):
            if index not in (23, 30):  # the fourth and the last pool
                x = layer(x)
        return x

    def rpn(self, x):
        x = F.relu(self.rpn_head["rpn_conv"](x))
        return self.rpn_head["rpn_cls"](x), self.rpn_head["rpn_reg"](x)

    def anchors(self, rows, columns):
        base = []
        for scale in self.SCALES:
            width, height = 8 * scale / math.sqrt(2.44), 8 * scale * math.sqrt(2.44)
            base.append(
                [
                    3.5 - (width - 1) / 2,
                    3.5 - (height - 1) / 2,
                    3.5 + (width - 1) / 2,
                    3.5 + (height - 1) / 2,
                ]
            )
        y, x = torch.meshgrid(torch.arange(rows) * 8, torch.arange(columns) * 8, indexing="ij")
        shift = torch.stack([x, y, x, y], dim=-1)
        return (shift[:, :, None] + torch.tensor(base).round()).flatten(0, 2)

    def detect(self, image):
        """Scores (n,) and boxes (n, 4), best first."""
        size = image.shape[1:]
        x = self.features(image)
        logits, deltas = (y[0].permute(1, 2, 0) for y in self.rpn(x))
        scores, order = logits.flatten().sigmoid().sort(descending=True)
        order = order[:12000]
        anchors = self.anchors(*x.shape[-2:])[order]
        boxes = clamp(decode(anchors, deltas.reshape(-1, 4)[order]), size, 1)
        regions = boxes[suppress(boxes, 0.7, 1)[:2000]]
        y = torch.stack([roi_align(x[0], region / 8, 1 / 8) for region in regions])
        mask = y
        for conv in self.mgan_head["convs"]:
            mask = F.relu(conv["conv"](mask))
        probability = self.mgan_head["conv_logits"](mask).sigmoid()
        y = (probability * (mask if self.pedestron else y)).flatten(1)
        for fc in self.bbox_head["shared_fcs"]:
            y = F.relu(fc(y))
        scores = self.bbox_head["fc_cls"](y).softmax(dim=1)[:, 1]
        deltas = self.bbox_head["fc_reg"](y)[:, 4:] * torch.tensor([0.1, 0.1, 0.2, 0.2])
        boxes = clamp(decode(regions, deltas), size, 1)
        scores, order = scores.sort(descending=True)
        boxes = boxes[order]
        keep = suppress(boxes, 0.5, 1)[:100]
        return scores[keep], boxes[keep]


def decode(boxes, deltas):
    """Widths count one more than x2 - x1."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].exp()
    return torch.cat([middle - size / 2 + 0.5, middle + size / 2 - 0.5], dim=1)


def clamp(boxes, size, last):
    height, width = size
    limit = torch.tensor([width, height, width, height]) - last
    return boxes.clamp(min=torch.zeros(4)).minimum(limit)


def suppress(boxes, threshold, extra):
    """Greedy non-maximum suppression of boxes sorted by score; widths are x2 - x1 + extra."""
    area = (boxes[:, 2:] - boxes[:, :2] + extra).prod(dim=1)
    start = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    end = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (end - start + extra).clamp(min=0).prod(dim=2)
    overlaps = shared / (area[:, None] + area - shared) > threshold
    alive, keep = torch.ones(len(boxes), dtype=torch.bool), []
    for index in range(len(boxes)):
        if alive[index]:
            keep.append(index)
            alive &= ~overlaps[index]
    return torch.tensor(keep)


def roi_align(x, region, one):
    """7 x 7 means of 2 x 2 samples of x (C, H, W); the region ends `one` pixel after its corner."""
    _, height, width = x.shape
    x1, y1, x2, y2 = region.tolist()
    steps = (torch.arange(14) + 0.5) / 14
    ys = (y1 + steps * (y2 + one - y1)).clamp(0, height - 1)
    xs = (x1 + steps * (x2 + one - x1)).clamp(0, width - 1)
    top, left = ys.floor().long(), xs.floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    fy, fx = (ys - top)[:, None], xs - left
    samples = (
        x[:, top][:, :, left] * (1 - fy) * (1 - fx)
        + x[:, top][:, :, right] * (1 - fy) * fx
        + x[:, bottom][:, :, left] * fy * (1 - fx)
        + x[:, bottom][:, :, right] * fy * fx
    )
    return F.avg_pool2d(samples, 2)
