"""
Converts public checkpoints to the state dicts of this project's models.

A network is one :class:`Mapping`: a table from our names to theirs. Starting from our names makes
the check complete: every tensor of our model is looked up, and any tensor of theirs that is left is
reported.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = [
    "ConversionError",
    "Mapping",
    "check_normalization",
    "convert_state_dict",
    "load_public_state_dict",
    "weight_settings",
]

# Counters that batch norm keeps for training; checkpoints of old PyTorch versions have none.
_OPTIONAL = "num_batches_tracked"


class ConversionError(ValueError):
    """A checkpoint that does not hold the network it should be converted to."""


@dataclass(frozen=True)
class Mapping:
    """
    The names that a public checkpoint has for the tensors of one of our models.

    Attributes:
        source (str): origin of the checkpoints, for the help text.
        config_file (str): the shipped config of our model, see
            :func:`blockcopy_d2.resources.config_path`.
        names (tuple): rows (pattern, template): a regular expression that matches a whole name of
            ours, and the name of theirs, in which \\1 stands for its first group. The first row
            that matches counts.
        transforms (tuple): rows (pattern, function): the function converts their tensors for names
            of ours that match, if they differ by more than their names.
        ignored (tuple): patterns of their names that our model does not use.
        settings (tuple): rows (key, value) of the config keys that these weights need.
        normalization (tuple): their names of the mean and the standard deviation of the network's
            input, if they have them.
    """

    source: str
    config_file: str
    names: tuple[tuple[str, str], ...]
    transforms: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...] = ()
    ignored: tuple[str, ...] = ()
    settings: tuple[tuple[str, object], ...] = ()
    normalization: tuple[str, ...] = ()

    def their_name(self, name):
        """
        Raises:
            ConversionError: no row matches: the table does not fit our model.
        """
        for pattern, template in self.names:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(template)
        raise ConversionError(f"No row of the table for {self.source} has the name {name}.")

    def transform(self, name, tensor):
        for pattern, function in self.transforms:
            if re.fullmatch(pattern, name):
                return function(tensor)
        return tensor

    def is_ignored(self, name):
        return name in self.normalization or any(
            re.fullmatch(pattern, name) for pattern in self.ignored
        )


def convert_state_dict(mapping, source, target):
    """
    Args:
        mapping (Mapping): mapping of the network.
        source (dict[str, Tensor]): the public state dict.
        target (dict[str, Tensor]): the state dict of our model; not changed.

    Returns:
        dict[str, Tensor]: state dict of our model, with the keys, shapes and dtypes of ``target``.

    Raises:
        ConversionError: names every key of ``target`` that ``source`` lacks, every key of
            ``source`` that is unknown, and every tensor whose shape or numbers do not fit.
    """
    converted, used, missing, misshapen, unfit = {}, set(), [], [], []
    for name, own in target.items():
        theirs = mapping.their_name(name)
        if theirs not in source:
            if name.endswith(_OPTIONAL):
                converted[name] = own.clone()
            else:
                missing.append(f"{theirs} (for {name})")
            continue
        used.add(theirs)
        tensor = mapping.transform(name, source[theirs])
        if tensor.shape != own.shape:
            found, expected = tuple(tensor.shape), tuple(own.shape)
            misshapen.append(f"{theirs} (for {name}): {found}, expected {expected}")
            continue
        fault = _fault(tensor, own.dtype)
        if fault:
            unfit.append(f"{theirs} (for {name}): {fault}")
            continue
        converted[name] = tensor.to(own.dtype).clone()
    unknown = [
        name
        for name in source
        if name not in used and not name.endswith(_OPTIONAL) and not mapping.is_ignored(name)
    ]
    problems = [
        f"{title}:\n  " + "\n  ".join(sorted(names))
        for title, names in (
            ("Missing keys", missing),
            ("Unknown keys", unknown),
            ("Tensors of another shape", misshapen),
            ("Tensors of other numbers", unfit),
        )
        if names
    ]
    if problems:
        raise ConversionError(
            f"This is not a checkpoint of {mapping.source} with this config.\n"
            + "\n".join(problems)
        )
    return converted


def _fault(tensor, dtype):
    """str: why the numbers of a tensor are none of a type; empty if they are."""
    if tensor.is_floating_point() != dtype.is_floating_point or tensor.is_complex():
        found, expected = (str(x).removeprefix("torch.") for x in (tensor.dtype, dtype))
        return f"{found}, expected {expected}"
    bad = tensor.numel() - int(torch.isfinite(tensor.to(dtype)).sum())
    return f"{bad} of {tensor.numel()} not finite" if bad else ""


def check_normalization(mapping, source, model):
    """
    Args:
        mapping (Mapping): mapping of the network.
        source (dict[str, Tensor]): the public state dict.
        model (nn.Module): with ``pixel_mean`` and ``pixel_std``.

    Raises:
        ConversionError: the weights need another normalization than the model's.
    """
    keys = {"MODEL.PIXEL_MEAN": model.pixel_mean, "MODEL.PIXEL_STD": model.pixel_std}
    for name, (key, own) in zip(mapping.normalization, keys.items()):
        if name not in source:
            raise ConversionError(
                f"This is not a checkpoint of {mapping.source}: it has no {name}."
            )
        # A checkpoint in half precision has rounded them.
        own = own.to(source[name].dtype) if source[name].is_floating_point() else own
        theirs, own = (x.flatten().float().cpu() for x in (source[name], own))
        if theirs.shape != own.shape or not torch.allclose(theirs, own):
            found, expected = (
                f"[{', '.join(format(value, '.6g') for value in x.tolist())}]"
                for x in (theirs, own)
            )
            raise ConversionError(
                f"{name} of this checkpoint is {found}; the config's {key} is {expected}. Use a"
                f' config with that of the checkpoint, here and where it runs: {key} "{found}".'
            )


def weight_settings(model):
    """
    Returns the config keys that the weights of a model depend on. A module lists its own in an
    attribute ``weight_settings``, a dict.

    Args:
        model (nn.Module):

    Returns:
        dict[str, object]: values of config keys, by their full names.
    """
    settings = {}
    for module in model.modules():
        settings.update(getattr(module, "weight_settings", {}))
    return settings


def load_public_state_dict(path):
    """
    Read the tensors of a checkpoint file; no code in it is run.

    Args:
        path (str): a file of ``torch.save``: a state dict, bare or under "state_dict" or "model",
            with or without the "module." of DataParallel before its names.

    Returns:
        dict[str, Tensor]: on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: the file holds anything but tensors and plain values, or no state dict.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ConversionError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}: {error}). Is it"
            " whole, and a file of torch.save? If it holds other Python objects and you trust it,"
            " save its state dict alone with torch.save first."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    tensors = isinstance(checkpoint, dict) and all(
        isinstance(value, torch.Tensor) for value in checkpoint.values()
    )
    if not tensors or not checkpoint:
        raise ConversionError(
            f"{path} holds no state dict: expected tensors by name, at the top or under"
            " 'state_dict' or 'model'."
        )
    if all(name.startswith("module.") for name in checkpoint):
        checkpoint = {name.removeprefix("module."): x for name, x in checkpoint.items()}
    return dict(checkpoint)
