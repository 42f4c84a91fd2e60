"""
Files that come with the package: configs and the demo weights.

``blockcopy://NAME`` names a file of weights/ wherever Detectron2 takes a path, so that a config
finds its weights from any folder.
"""

import difflib
from pathlib import Path

from detectron2.utils.file_io import PathHandler, PathManager

__all__ = [
    "BlockCopyHandler",
    "config_path",
    "shipped_configs",
    "shipped_folder",
    "trained_weights",
]

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name):
    """
    Args:
        name (str): "configs" or "weights".

    Returns:
        Path: the folder inside an installed package, or at the top of a clone.
    """
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def shipped_configs():
    """
    Returns:
        list[str]: the names of the configs that come with the package, for :func:`config_path`.
    """
    folder = shipped_folder("configs")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def config_path(name):
    """
    Find a config by the first of these that exists: a file; a config of this package, such as
    "maskrcnn_blockcopy.yaml"; a config of Detectron2's model zoo, such as
    "Cityscapes/mask_rcnn_R_50_FPN.yaml".

    Args:
        name (str): a path, or a name relative to one of the two config folders.

    Returns:
        str: the path of the file.

    Raises:
        FileNotFoundError: names what was tried and the known names closest to it.
    """
    # The model zoo imports every model of Detectron2.
    from detectron2 import model_zoo

    protocol, is_address, _ = str(name).partition("://")
    if is_address and protocol.lower() in ("http", "https", "ftp"):
        raise FileNotFoundError(
            f"The config is an address ({protocol}://...); expected a file. Download it first, with"
            " those it is based on."
        )
    if PathManager.isfile(name):
        return str(name)
    shipped = shipped_folder("configs") / name
    if shipped.is_file():
        return str(shipped)
    try:
        return model_zoo.get_config_file(str(name))
    except RuntimeError:
        raise FileNotFoundError(
            f"No config '{name}': it is neither a file (seen from {Path.cwd()}), nor in"
            f" {shipped_folder('configs')}, nor in Detectron2's model zoo.{_near_matches(name)}"
        ) from None


def trained_weights(name):
    """
    Args:
        name (str): name of a config, as for :func:`config_path`.

    Returns:
        str or None: address of the trained model that Detectron2's zoo has for this config. (The
        config itself names the weights that training starts from.) None for a config that is not of
        the zoo.
    """
    from detectron2 import model_zoo

    if PathManager.isfile(name) or (shipped_folder("configs") / name).is_file():
        return None
    try:
        return model_zoo.get_checkpoint_url(str(name))
    except RuntimeError:
        return None


def _near_matches(name):
    from detectron2 import model_zoo

    zoo = Path(model_zoo.__file__).parent / "configs"
    known = shipped_configs() + sorted(
        path.relative_to(zoo).as_posix() for kind in ("*.yaml", "*.py") for path in zoo.rglob(kind)
    )
    name = Path(name)
    by_name = difflib.get_close_matches(name.as_posix(), known, n=3)
    # The right file name in a wrong folder is far away as a string.
    by_stem = {Path(other).stem: other for other in known}
    stems = difflib.get_close_matches(name.stem, by_stem, n=3, cutoff=0.8)
    near = list(dict.fromkeys(by_name + [by_stem[stem] for stem in stems]))[:4]
    return f" Did you mean {' or '.join(near)}?" if near else ""


class BlockCopyHandler(PathHandler):
    """Resolves ``blockcopy://NAME`` to the file NAME of weights/."""

    PREFIX = "blockcopy://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _path(self, path):
        return shipped_folder("weights") / path.removeprefix(self.PREFIX)

    def _get_local_path(self, path, force=False, **kwargs):
        self._check_kwargs(kwargs)
        local = self._path(path)
        if not local.is_file():
            folder = local.parent
            found = sorted(p.name for p in folder.glob("*.pth")) if folder.is_dir() else []
            raise FileNotFoundError(
                f"No weights '{path}': there is no file {local} (the folder has:"
                f" {', '.join(found) or 'nothing'}). The README says how to train the demo weights;"
                " other weights go into MODEL.WEIGHTS by their own path."
            )
        return str(local)

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        self._check_kwargs(kwargs)
        return open(self._get_local_path(path), mode, buffering=buffering)

    def _exists(self, path, **kwargs):
        self._check_kwargs(kwargs)
        return self._path(path).exists()

    def _isfile(self, path, **kwargs):
        self._check_kwargs(kwargs)
        return self._path(path).is_file()


# A reloaded module may register it again.
PathManager.register_handler(BlockCopyHandler(), allow_override=True)
