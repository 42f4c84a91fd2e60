#!/usr/bin/env python3
"""
Converts a public checkpoint into one that train_net.py and demo.py load.

The result holds the weights of the config's model under Detectron2's names, and the config keys
that they need. A config with other values refuses them. Every tensor of the checkpoint has to fit:
keys that are missing or unknown, and shapes that differ, end the conversion with a list of their
names. Files are read as plain tensors; no code in them is run.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import argparse
import contextlib
import functools
from pathlib import Path

import torch
from detectron2.modeling import build_model

import blockcopy_d2.modeling  # noqa: F401  registers the networks
from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.checkpoint_conversion import (
    MAPPINGS,
    ConversionError,
    check_normalization,
    convert_state_dict,
    load_public_state_dict,
    weight_settings,
)
from blockcopy_d2.config import base_config
from blockcopy_d2.data.addresses import is_address
from blockcopy_d2.engine import load_config
from blockcopy_d2.engine.arguments import errors_end_the_program
from blockcopy_d2.engine.output_folder import make_folder
from blockcopy_d2.engine.outputs import check_output, refuse_overwriting
from blockcopy_d2.resources import config_path


def argument_parser():
    networks = "\n".join(
        f"  {name:<14} {mapping.source}, for configs/{mapping.config_file}"
        for name, mapping in MAPPINGS.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__.strip(),
        epilog=f"networks:\n{networks}\n\nexample:\n"
        "  python tools/convert_checkpoint.py csp epoch_72.pth.stu csp_R_50.pth\n"
        "  python train_net.py --config-file CityPersons/csp_R_50_blockcopy.yaml --eval-only"
        " MODEL.WEIGHTS csp_R_50.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "network", choices=MAPPINGS, help="network of the checkpoint, and its authors, see below"
    )
    parser.add_argument("input", help="the public checkpoint, a file of torch.save")
    parser.add_argument("output", help="where to write the converted checkpoint (.pth)")
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of the model to convert to, a file or the name of a shipped one; default:"
        " the network's, see below",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, pairs at the end of the command",
    )
    return parser


def main(args):
    mapping = MAPPINGS[args.network]
    refuse_overwriting(args.output, [args.input, args.config_file])
    folder = Path(args.output).parent
    if folder.is_dir() or is_address(args.output):
        check_output(args.output, "a checkpoint (.pth)")
    settings = [x for key, value in mapping.settings for x in (key, str(value))]
    cfg = load_config(
        config_path(args.config_file or mapping.config_file),
        ["MODEL.DEVICE", "cpu", *settings, *args.opts],
    )
    _check_settings(mapping, cfg)
    model = build_model(base_config(cfg))
    source = load_public_state_dict(args.input)
    try:
        converted = convert_state_dict(mapping, source, model.state_dict())
    except ConversionError as error:
        raise ConversionError(f"{error}{_others_that_fit(args.network, source, model)}") from None
    check_normalization(mapping, source, model)
    model.load_state_dict(converted, strict=True)
    make_folder(str(folder))
    needed = weight_settings(model)
    with atomic_write(args.output) as temporary:
        torch.save({"model": converted, "settings": needed}, temporary)
    settings = "".join(f", for {key} {value}" for key, value in needed.items())
    print(f"{args.output}: {len(converted)} tensors{settings}")
    return len(converted)


def _check_settings(mapping, cfg):
    """Refuses overrides that contradict the source, though names and shapes fit."""
    for key, value in mapping.settings:
        found = functools.reduce(getattr, key.split("."), cfg)
        if found != value:
            raise ValueError(
                f"{key} is {found} in --opts, but weights of {mapping.source} need {value}: leave"
                " it out."
            )


def _others_that_fit(network, source, model):
    """str: a hint about other sources that the checkpoint could come from, for the same model."""
    target, fitting = model.state_dict(), []
    for name, mapping in MAPPINGS.items():
        if name != network:
            with contextlib.suppress(ConversionError):
                convert_state_dict(mapping, source, target)
                fitting.append(f"{name} ({mapping.source})")
    return f"\nIt does fit {' and '.join(fitting)}: name that one." if fitting else ""


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with errors_end_the_program():
        main(arguments)
