"""Merges files and overrides into a config, without running code and by the types of its keys."""

import difflib
from pathlib import Path

import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.config.compat import downgrade_config, guess_version, upgrade_config

from blockcopy_d2.config import KEYS
from blockcopy_d2.data import redact

__all__ = ["merge_file", "merge_overrides", "nearest"]


def merge_file(cfg, path):
    """
    Merge a yaml config, and those it is based on.

    Args:
        cfg (CfgNode): unfrozen, changed in place.
        path (str):

    Raises:
        KeyError: names an unknown key and the known keys closest to it.
        ValueError: names a key with a value it does not take, or a file that is not a yaml config.
    """
    try:
        loaded = _PlainConfig.load_yaml_with_base(path)
        version = loaded.get("VERSION")
        version = guess_version(CfgNode(loaded), path) if version is None else version
        if version not in range(1, cfg.VERSION + 1):
            raise ValueError(f"its VERSION is {version!r}; expected 1 to {cfg.VERSION}")
        loaded = CfgNode({**loaded, "VERSION": version})
    except yaml.constructor.ConstructorError as error:
        raise ValueError(
            f"{path} is not loaded: it has more than plain values, which could execute code. Write"
            f" the values out instead. {error}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is based on itself, or a value of it holds itself.") from error
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not a yaml config of Detectron2: {error}. Expected keys and values, such as"
            " 'VERSION: 2'."
        ) from error
    except (AssertionError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not a yaml config of Detectron2: {error}") from error
    # Earlier versions have other names for some keys.
    merged = downgrade_config(cfg, to_version=version)
    merged.merge_from_other_cfg(CfgNode(_fit(loaded, merged, root=merged)))
    cfg.clear()
    cfg.update(upgrade_config(merged))


def merge_overrides(cfg, opts):
    """
    Args:
        cfg (CfgNode): unfrozen, changed in place.
        opts (sequence[str]): "KEY VALUE" pairs.

    Raises:
        KeyError: names an unknown key and the known keys closest to it.
        ValueError: names a key with a value it does not take, or words that are not pairs.
    """
    if len(opts) % 2:
        raise ValueError(
            "Config overrides are pairs of KEY and VALUE; these are not:"
            f" {' '.join(map(redact, opts))}"
        )
    for name, value in zip(opts[::2], opts[1::2], strict=True):
        current = cfg
        for part in str(name).split("."):
            if not isinstance(current, CfgNode) or part not in current:
                raise KeyError(_unknown_key(str(name), cfg))
            current = current[part]
        if isinstance(current, CfgNode):
            raise ValueError(f"{name} is a group of keys; give one of {', '.join(current)}.")
        cfg.merge_from_list([name, _fit(value, current, root=cfg, name=name)])


def nearest(name, known):
    """
    Args:
        name (str): an unknown name.
        known (iterable[str]):

    Returns:
        str: end of a message with the known names closest to ``name``, if there are any.
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "."


class _PlainConfig(CfgNode):
    """Reads yaml as plain values, except for Detectron2's own files."""

    @classmethod
    def load_yaml_with_base(cls, filename, allow_unsafe=False):
        # RetinaNet's anchor sizes in the model zoo are an expression. Called again for each base.
        with cls._open_cfg(filename) as f:
            content = f.read()
        zoo = Path(model_zoo.__file__).parent / "configs"
        of_detectron2 = any(
            own.read_text() == content for own in zoo.rglob(Path(filename).name) if own.is_file()
        )
        return super().load_yaml_with_base(filename, allow_unsafe=of_detectron2)


def _fit(value, current, *, root, name=""):
    """
    Returns a value of the type that yacs expects: a float for a whole number, and a text for
    digits.

    Args:
        value: value of the key ``name``.
        current: its value so far.
        root (CfgNode): the whole config.
        name (str): empty for the root.
    """
    if isinstance(current, CfgNode):
        if not isinstance(value, dict):
            known = ", ".join(current)
            raise ValueError(f"{name} is {value!r}; it is a group of keys: {known}.")
        return {
            key: _fit(x, current[key], root=root, name=f"{name}.{key}".lstrip("."))
            if _known(key, current, name, root)
            else x
            for key, x in value.items()
        }
    if not isinstance(current, str):
        value = _decoded(value)
    elif type(value) is int:
        value = str(value)
    if name in KEYS:
        value = KEYS[name].check(name, value)
    elif isinstance(current, float) and type(value) is int:
        value = float(value)
    # A text stays one even if yacs would read a number or a list in it.
    is_text = isinstance(current, str) and isinstance(value, str)
    return repr(value) if is_text and not isinstance(_decoded(value), (str, type(None))) else value


def _decoded(value):
    """Decodes as yacs does. A value that it cannot decode is a text."""
    try:
        return CfgNode._decode_cfg_value(value)
    except (MemoryError, RecursionError, TypeError):
        return value


def _known(key, node, prefix, root):
    if key in node:
        return True
    if node.is_new_allowed():
        return False
    raise KeyError(_unknown_key(f"{prefix}.{key}".lstrip("."), root))


def _unknown_key(name, cfg):
    known = list(_full_names(cfg))
    hint = nearest(name, known)
    if hint == ".":
        leaf = name.rsplit(".", 1)[-1]
        same = [other for other in known if other.rsplit(".", 1)[-1] == leaf][:3]
        hint = f"; did you mean {' or '.join(same)}?" if same else hint
    return f"Unknown config key {name}{hint}"


def _full_names(node, prefix=""):
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _full_names(value, f"{prefix}{key}.")
