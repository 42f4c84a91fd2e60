"""The names of a ResNet: Detectron2's and torchvision's."""

__all__ = ["torchvision_resnet_names"]


def torchvision_resnet_names(ours, theirs):
    """
    Args:
        ours (str): prefix of the names of Detectron2's ResNet, such as "backbone.".
        theirs (str): prefix of torchvision's names.

    Returns:
        tuple: rows for :attr:`Mapping.names`.
    """
    ours = ours.replace(".", r"\.")
    rows = [
        (rf"{ours}stem\.conv1\.norm\.(\w+)", rf"{theirs}bn1.\1"),
        (rf"{ours}stem\.conv1\.(\w+)", rf"{theirs}conv1.\1"),
    ]
    for stage in range(2, 6):
        block, layer = rf"{ours}res{stage}\.(\d+)\.", rf"{theirs}layer{stage - 1}.\1."
        rows += [
            (rf"{block}conv(\d)\.norm\.(\w+)", rf"{layer}bn\2.\3"),
            (rf"{block}conv(\d)\.(\w+)", rf"{layer}conv\2.\3"),
            (rf"{block}shortcut\.norm\.(\w+)", rf"{layer}downsample.1.\2"),
            (rf"{block}shortcut\.(\w+)", rf"{layer}downsample.0.\2"),
        ]
    return tuple(rows)
