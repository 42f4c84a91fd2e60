#!/usr/bin/env python3
"""
Checks every model of Detectron2's zoo, a few channels wide, on a CPU: with all blocks it equals the
stock model, with some blocks each of its parts equals the masked-dense oracle. Prints a table of
the modules that run in blocks, their operators that run densely, and heads that a CUDA graph holds.

    python tools/check_model_zoo.py                           # all of them, some minutes
    python tools/check_model_zoo.py --only retinanet
    python tools/check_model_zoo.py --write docs/networks.md  # between the marks of the table there

Exits with 1 if a model differs. Weights are random; nothing is downloaded.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import collections
import copy
import dataclasses
import importlib.resources
import logging
import sys
from pathlib import Path

import torch
import torch.utils._pytree as pytree
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import blockcopy_d2
from blockcopy_d2.modeling import BlockCopyVideoModel
from blockcopy_d2.modeling.fixed_shape import find_static_heads
from blockcopy_d2.sparse import BlockGrid, BlockSparseModule, MaskedDenseOracle

SIZE, BLOCK_SIZE = (96, 160), 32
# Largest difference, as a share of the largest value of a map, in float32.
TOLERANCE = 1e-3
MARKS = "<!-- model zoo: begin -->", "<!-- model zoo: end -->"
_NARROW = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.RPN.PRE_NMS_TOPK_TEST", 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM", 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM", 32,
    "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "TEST.DETECTIONS_PER_IMAGE", 10,
]  # fmt: skip


@dataclasses.dataclass
class Check:
    """
    Findings for a config.

    Attributes:
        model (str): meta-architecture.
        blocks (str): modules that run in blocks.
        dense (str): their operators without a rule for blocks, which run on whole maps.
        heads (str): class of the heads in a CUDA graph, or that there is none.
        stock, oracle (float): largest difference to the stock model with all blocks, and to the
            oracle with some, of the largest value of each map; NaN if it was not run.
        problem (str): why it was not run, or how its outputs differ; "" if all is well.
        runs (bool): whether it could be run at all.
    """

    model: str
    blocks: str = ""
    dense: str = ""
    heads: str = ""
    stock: float = float("nan")
    oracle: float = float("nan")
    problem: str = ""
    runs: bool = True

    @property
    def passed(self):
        return not self.runs or (
            not self.problem and self.stock <= TOLERANCE and self.oracle <= TOLERANCE
        )


class NotBuilt(Exception):
    """Names a model, and the reason why it is not built here."""


def zoo():
    """
    Returns:
        list[str]: the configs of Detectron2's zoo that describe a model.
    """
    root = Path(str(importlib.resources.files(model_zoo))) / "configs"
    paths = sorted(x.relative_to(root) for x in (*root.rglob("*.yaml"), *root.rglob("*.py")))
    return [str(x) for x in paths if not x.name.startswith("Base-") and x.parts[0] != "common"]


def build_narrow(path):
    """
    Args:
        path (str): a config of the zoo.

    Returns:
        tuple[nn.Module, str]: the model, and a text that is equal for equal models.

    Raises:
        NotBuilt: it needs a package that is not installed, or is not a model of Detectron2.
    """
    cfg = model_zoo.get_config(path)
    torch.manual_seed(0)
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list(_NARROW)
        resnets = cfg.MODEL.RESNETS
        resnets.NUM_GROUPS = min(resnets.NUM_GROUPS, 4)
        # Group normalization makes 32 groups.
        width = 32 if resnets.NORM == "GN" else 8
        resnets.STEM_OUT_CHANNELS = resnets.RES2_OUT_CHANNELS = width
        resnets.WIDTH_PER_GROUP = width // resnets.NUM_GROUPS
        cfg.MODEL.PIXEL_STD = [58.0] * 3
        for norm in (resnets, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
            norm.NORM = norm.NORM.replace("SyncBN", "BN")
        text = cfg.MODEL.dump() + cfg.TEST.dump()
        try:
            model = build_model(cfg)
        except ImportError as error:
            why = f"Detectron2 does not build it here: {_reason(error)}"
            raise NotBuilt(cfg.MODEL.META_ARCHITECTURE, why) from error
    else:
        node = cfg.model
        if "backbone" not in node:
            target = node["_target_"]
            name = target.rsplit(".", 1)[-1] if isinstance(target, str) else target.__name__
            raise NotBuilt(name, "No meta-architecture of Detectron2's: it has no backbone")
        node.pixel_std = [58.0] * 3
        if "roi_heads" in node:
            node.proposal_generator.post_nms_topk = [20, 20]
            node.roi_heads.box_predictor.test_score_thresh = 0.0
            node.roi_heads.box_predictor.test_topk_per_image = 10
        else:
            node.test_score_thresh = 0.0
            node.test_topk_candidates, node.max_detections_per_image = 20, 10
        model, text = instantiate(node), str(node)
    model.eval()
    _randomize(model)
    return model, text


@torch.no_grad()
def _randomize(model):
    """Sets weights at which the activations of a deep network neither die nor explode."""
    parts = (getattr(model, x, None) for x in ("backbone", "proposal_generator", "head"))
    for module in (x for part in parts if part is not None for x in part.modules()):
        if isinstance(module, torch.nn.Conv2d) and module.weight.dim() == 4:
            torch.nn.init.kaiming_normal_(module.weight)
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)


def frames(number):
    """Yields inputs of a video in which a square moves."""
    still = torch.randint(0, 255, (3, *SIZE), generator=torch.Generator().manual_seed(3))
    proposals = Instances(SIZE)
    proposals.proposal_boxes = Boxes(torch.tensor([[8.0, 8, 72, 72], [40, 20, 150, 90]]))
    proposals.objectness_logits = torch.ones(2)
    for index in range(number):
        image = still.to(torch.uint8)
        image[:, 20:60, 10 * index : 10 * index + 40] = 255
        yield {"image": image, "height": 120, "width": 200, "proposals": proposals}


@torch.no_grad()
def check(stock):
    """
    Args:
        stock (nn.Module): a model of Detectron2.

    Returns:
        Check: the findings.
    """
    name = type(stock).__name__
    inputs = list(frames(3))
    try:
        expected = copy.deepcopy(stock)(inputs[:1])[0]
    except (ImportError, AttributeError, RuntimeError, NotImplementedError) as error:
        problem = f"Detectron2 itself does not run here: {_reason(error)}"
        return Check(name, problem=problem, runs=False)
    dense = {key: module for key, module in copy.deepcopy(stock).named_modules()}
    model = blockcopy_d2.accelerate(
        stock, block_size=BLOCK_SIZE, learn=False, motion="none", policy="AllBlocks"
    )
    assert isinstance(model, BlockCopyVideoModel)
    parts = {k: x for k, x in model.base.named_modules() if isinstance(x, BlockSparseModule)}
    calls = {}
    for key, part in parts.items():
        part.register_forward_hook(
            lambda _, args, kwargs, outputs, key=key: calls.__setitem__(
                key, pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs, outputs))
            ),
            with_kwargs=True,
        )
    stream = model.init_state()
    result = model.step(inputs[0], stream)
    found = Check(name, blocks=", ".join(type(x.dense_module).__name__ for x in parts.values()))
    kind = find_static_heads(model.base)
    found.heads = "-" if kind is None else kind.__name__
    found.problem = _difference(expected, result.output)
    found.stock = max(
        _error(dense[key](*args, **kwargs), outputs)
        for key, (args, kwargs, outputs) in calls.items()
    )
    full, oracles, densified = result.grid, {}, collections.Counter()
    for key, (args, kwargs, _) in calls.items():
        program = parts[key].program(args, kwargs, full)
        densified.update(x.rstrip("_0123456789") for x in program.densified)
        options = {"unmasked": program.densified, "kwargs": kwargs}
        oracles[key] = MaskedDenseOracle(parts[key].dense_module, args, **options)
        oracles[key]((args, kwargs), full)
    found.dense = ", ".join(f"{n} {name}" if n > 1 else name for name, n in densified.items())
    active = torch.zeros_like(full.active)
    active[:, :2, :3] = True
    grid = BlockGrid(active, block_size=BLOCK_SIZE, image_size=full.image_size)
    result = model.step(inputs[2], stream, grid=grid)
    if not 0 < result.macs < result.dense_macs:
        found.problem = (
            f"{result.macs} of {result.dense_macs} multiply-accumulates with some blocks"
        )
    found.oracle = max(
        _error(oracles[key]((args, kwargs), grid), outputs)
        for key, (args, kwargs, outputs) in calls.items()
    )
    return found


def _reason(error):
    return str(error).strip().splitlines()[0].split(". ")[0]


def _error(expected, found):
    """Returns the largest difference, of the largest value of each map."""
    expected, found = (pytree.tree_leaves(x) for x in (expected, found))
    pairs = [x for x in zip(expected, found, strict=True) if isinstance(x[0], torch.Tensor)]
    assert pairs
    return max(
        ((x - y).abs().max() / x.abs().max().clamp_min(1e-6)).item() for x, y in pairs if x.numel()
    )


def _difference(expected, found):
    """Returns how the results of a frame differ in kind or number; "" if they do not."""
    if expected.keys() != found.keys():
        return f"gives {sorted(found)} for {sorted(expected)}"
    for key in expected.keys() & {"instances", "proposals"}:
        if len(expected[key]) != len(found[key]):
            return f"{len(found[key])} {key} for {len(expected[key])}"
    return ""


def check_zoo(paths, progress=lambda path, found: None):
    """
    Args:
        paths (sequence[str]): configs of the zoo.
        progress (callable): called with every config and its Check.

    Returns:
        dict[str, Check]: findings by config; configs of equal models share them.
    """
    found, known = {}, {}
    for path in paths:
        try:
            model, text = build_narrow(path)
        except NotBuilt as error:
            name, text = error.args
            known[text] = Check(name, problem=text, runs=False)
        if text not in known:
            known[text] = check(model)
        found[path] = known[text]
        progress(path, found[path])
    return found


def table(found):
    """
    Args:
        found (dict[str, Check]):

    Returns:
        str: a Markdown table, in which configs with the same cells share a row.
    """
    rows = collections.defaultdict(list)
    for path, one in found.items():
        rows[one.model, one.blocks, one.dense, one.heads, one.problem].append((path, one))
    lines = [
        "| model | configs | in blocks | densely in them | heads in a CUDA graph | to stock, all "
        "blocks | to the oracle, some |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, blocks, dense, heads, problem), configs in sorted(rows.items()):
        names = ", ".join(f"`{path}`" for path, _ in configs)
        if len(configs) > 1:
            names = f"<details><summary>{len(configs)} configs</summary>{names}</details>"
        if problem:
            lines.append(f"| {model} | {names} | {problem} | | | | |")
            continue
        errors = (max(getattr(x, y) for _, x in configs) for y in ("stock", "oracle"))
        cells = " | ".join("< 1e-5" if x < 1e-5 else f"{x:.0e}" for x in errors)
        heads = "operator by operator" if heads == "-" else f"`{heads}`"
        lines.append(f"| {model} | {names} | {blocks} | {dense or '-'} | {heads} | {cells} |")
    return "\n".join(lines)


def write(path, text):
    """Replaces the text between the marks of a file."""
    path = Path(path)
    old = path.read_text(encoding="utf-8")
    begin, end = MARKS
    if begin not in old or end not in old:
        raise SystemExit(f"error: {path} has no {begin} and {end}")
    head, tail = old.split(begin)[0], old.split(end)[1]
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")


def argument_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="configs with this in the name")
    parser.add_argument("--write", metavar="FILE", help="a document to put the table into")
    return parser


def main(argv=None):
    parser = argument_parser()
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    paths = [path for path in zoo() if args.only in path]
    if not paths:
        parser.error(f"--only {args.only}: no config of the zoo has this in its name")

    def progress(path, one):
        print(f"{'ok' if one.passed else 'DIFFERS':8}{path}  {one.problem}", file=sys.stderr)

    found = check_zoo(paths, progress)
    text = table(found)
    print(text)
    if args.write:
        write(args.write, text)
    sys.exit(not all(one.passed for one in found.values()))


if __name__ == "__main__":
    main()
