"""Loads weights that must fit, and saves policies."""

import contextlib
import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from blockcopy_d2.atomic import atomic_write
from blockcopy_d2.data import redact
from blockcopy_d2.modeling import weight_settings

from .checkpoint_files import (
    UnreadableCheckpointError,
    check_parameters,
    not_finite,
    read_checkpoint,
)

__all__ = [
    "PolicyCheckpointer",
    "SafeCheckpointer",
    "UnreadableCheckpointError",
    "WeightsCheckpointer",
]


class SafeCheckpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer, except that it never leaves an incomplete file, and resumes from the
    newest checkpoint that can be read.

    Attributes:
        file_prefix (str): prefix of the names of its files: ``<prefix>_0000999.pth``.
    """

    file_prefix = "model"
    # Whether .pkl files are pickles, as in Detectron2's model zoo, or files of torch.save.
    takes_pickles = True

    def __init__(self, *args, **kwargs):
        """
        Args:
            args, kwargs: see :class:`DetectionCheckpointer`.
        """
        super().__init__(*args, **kwargs)
        self.path_manager = _AtomicPathManager()

    def save(self, name, **kwargs):
        """
        Args:
            name (str): name of the file, without ".pth".
            kwargs: further values to save.

        Raises:
            OSError: the file, which is named, cannot be written, as on a full disk.
        """
        try:
            super().save(name, **kwargs)
        except (OSError, RuntimeError) as error:
            # torch.save raises an error of its own for a full disk.
            causes = [error, error.__context__]
            reason = next((x.strerror for x in causes if isinstance(x, OSError)), None)
            if reason is None:
                raise
            path = os.path.join(self.save_dir, f"{name}.pth")
            raise OSError(
                f"The checkpoint {path} cannot be written: {reason}. Earlier ones are as they were."
            ) from error

    def load(self, path, *args, **kwargs):
        self._path = redact(path)
        try:
            return super().load(path, *args, **kwargs)
        finally:
            # Detectron2 leaves this behind when loading fails, and then refuses to load again.
            self._parsed_url_during_load = None

    def resume(self):
        """
        Load the checkpoint in ``save_dir`` that the file last_checkpoint names. If that cannot be
        read, load the newest one that can, and say so.

        Returns:
            dict or None: see :meth:`load`; None if there is nothing to resume from.

        Raises:
            ValueError: the checkpoint can be read, but does not fit.
        """
        for path in self._checkpoints():
            try:
                extra = self.load(path)
            except (UnreadableCheckpointError, OSError) as error:
                self.logger.warning("Cannot resume from %s: %s", path, error)
            else:
                self.logger.info("Resuming from %s", path)
                return extra
        self.logger.warning(
            "There is no checkpoint %s in %s to resume from: starting from the beginning.",
            os.path.join(self.save_dir, f"{self.file_prefix}_*.pth"),
            self.save_dir,
        )
        return None

    def resume_or_load(self, path, *, resume=True):
        extra = self.resume() if resume else None
        return self.load(path, checkpointables=[]) if extra is None else extra

    def _load_file(self, filename):
        if filename.endswith(".pkl") and self.takes_pickles:
            loaded = self._load_pickle(filename)
        elif filename.endswith(".pyth"):
            loaded = _load_pycls(filename)
        elif filename.endswith(".pkl"):
            loaded = read_checkpoint(filename)
            loaded = loaded if "model" in loaded else {"model": loaded}
        else:
            loaded = super()._load_file(filename)
        check_parameters(loaded["model"], filename)
        return loaded

    def _load_pickle(self, filename):
        self.logger.warning(
            "%s is a pickle, the format of Detectron2's model zoo: loading it executes code that is"
            " in it. Load such files only from sources you trust.",
            filename,
        )
        try:
            return super()._load_file(filename)
        except Exception as error:
            # Damaged bytes make the unpickler raise errors of many types.
            raise UnreadableCheckpointError(
                f"{filename} is not a readable checkpoint: {error}"
            ) from error

    def _torch_load(self, f):
        return read_checkpoint(f)

    def _load_model(self, checkpoint):
        # Config keys that tools/convert_checkpoint.py writes beside the weights.
        wanted = checkpoint.pop("settings", None)
        self._check_settings(wanted if isinstance(wanted, dict) else {})
        incompatible = super()._load_model(checkpoint)
        state = self.model.state_dict()
        for name in incompatible.missing_keys:
            state.pop(name, None)
        broken = not_finite(state)
        if broken:
            raise UnreadableCheckpointError(
                f"{len(broken)} parameters of the weights {self._path} are not finite"
                f" ({_abridge(broken)}): the file is damaged, or its training diverged. Use an"
                " earlier checkpoint."
            )
        return incompatible

    def _check_settings(self, wanted):
        own = weight_settings(self.model)
        wrong = {key: value for key, value in wanted.items() if own.get(key, value) != value}
        if wrong:
            listed = ", ".join(f"{key} is {own[key]}, not {wrong[key]}" for key in wrong)
            keys = " ".join(f"{key} {value}" for key, value in wrong.items())
            self._other_form(
                f"The weights {self._path} have another form of the network: {listed}. Add"
                f" {keys}, or use the config that they were converted for."
            )

    def _other_form(self, message):
        # A network may be trained on into the other form.
        self.logger.warning(message)

    def _checkpoints(self):
        """list[str]: the one that last_checkpoint names, then the others, newest first."""
        if not self.path_manager.isdir(self.save_dir):
            return []
        names = [
            name
            for name in self.path_manager.ls(self.save_dir)
            if name.startswith(f"{self.file_prefix}_") and name.endswith(".pth")
        ]
        newest_first = sorted(names, key=self._modified, reverse=True)
        tagged = self._last_checkpoint()
        if tagged is not None and tagged not in names:
            self.logger.warning(
                "%s names %r, which is not a checkpoint %s_*.pth in that folder.",
                os.path.join(self.save_dir, "last_checkpoint"),
                tagged,
                self.file_prefix,
            )
        newest_first.sort(key=lambda name: name != tagged)
        return [os.path.join(self.save_dir, name) for name in newest_first]

    def _modified(self, name):
        return os.path.getmtime(self.path_manager.get_local_path(os.path.join(self.save_dir, name)))

    def _last_checkpoint(self):
        """str or None: content of the file last_checkpoint."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        if not self.path_manager.isfile(path):
            return None
        with self.path_manager.open(path, "rb") as f:
            return f.read().decode(errors="replace").strip()


class WeightsCheckpointer(SafeCheckpointer):
    """
    Detectron2's checkpointer for a model that is run, not trained. Parameters missing from the file
    would stay random, so a file that does not fit is an error. The policy's may be missing: a
    detector's file has no policy.

    Checkpoints in torch's format (.pth, and .pyth of pycls) are loaded without executing code from
    them. Detectron2's model zoo files (.pkl) are pickles, about which the log warns.
    """

    # Parameters that may be missing.
    optional_prefix = "policy."
    _advice = "Use the config that the weights were trained with."

    def _other_form(self, message):
        raise ValueError(message)

    def load(self, path, *args, **kwargs):
        """
        Args:
            path (str): a file, or a URL that Detectron2 resolves.

        Raises:
            ValueError: no path is given, or the file does not fit. The message names the
                parameters.
            FileNotFoundError: there is no such file.
        """
        if not path:
            raise ValueError(
                "MODEL.WEIGHTS is empty: there is no trained network to run. Set it to a"
                " checkpoint, for example one from Detectron2's model zoo."
            )
        try:
            local_path = self.path_manager.get_local_path(path.split("?")[0])
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(
                f"The weights {redact(path)} cannot be fetched: {redact(error)}"
            ) from None
        if not self.path_manager.isfile(local_path):
            raise FileNotFoundError(
                f"The weights {redact(path)} do not exist. Check MODEL.WEIGHTS and"
                " MODEL.BLOCKCOPY.POLICY.WEIGHTS."
            )
        return super().load(path, *args, **kwargs)

    def _log_incompatible_keys(self, incompatible):
        missing = [
            key
            for key in incompatible.missing_keys
            if not (self.optional_prefix and key.startswith(self.optional_prefix))
        ]
        problems = []
        if missing:
            problems.append(f"{len(missing)} parameters are missing ({_abridge(missing)})")
        if incompatible.incorrect_shapes:
            shapes = [
                f"{key} is {tuple(found)}, expected {tuple(expected)}"
                for key, found, expected in incompatible.incorrect_shapes
            ]
            problems.append(f"{len(shapes)} have another shape ({_abridge(shapes)})")
        if problems:
            raise ValueError(
                f"The weights {self._path} do not fit the model: {'; '.join(problems)}."
                f" {self._advice}"
            )
        incompatible.missing_keys.clear()
        super()._log_incompatible_keys(incompatible)


class PolicyCheckpointer(WeightsCheckpointer):
    """Saves and loads a policy with its learner, and nothing of the task network."""

    optional_prefix = ""
    file_prefix = "policy"
    takes_pickles = False

    @property
    def _advice(self):
        name = type(self.model).__name__
        return (
            f"The policy is {name}: set MODEL.BLOCKCOPY.POLICY.NAME to the one that they belong to,"
            " and use the config that it was warmed with."
        )

    def __init__(self, policy, save_dir="", *, learner=None):
        """
        Args:
            policy (Policy):
            save_dir (str):
            learner (OnlineLearner or None): learner of this policy.
        """
        super().__init__(policy, save_dir, **({"learner": learner} if learner else {}))

    def _load_file(self, filename):
        loaded = super()._load_file(filename)
        # A checkpoint of a whole video model has its policy under this prefix.
        names = [name for name in loaded["model"] if name.startswith("policy.")]
        if names:
            own = {name.removeprefix("policy."): loaded["model"][name] for name in names}
            loaded = {"model": own}
        return loaded


class _AtomicPathManager:
    """Detectron2's PathManager, except that local files are written completely or not at all."""

    def __getattr__(self, name):
        return getattr(PathManager, name)

    @contextlib.contextmanager
    def open(self, path, mode="r", **kwargs):
        """Opens a file as PathManager does. Use it as a context."""
        with contextlib.ExitStack() as stack:
            if "w" in mode and "://" not in path:
                path = stack.enter_context(atomic_write(path))
            yield stack.enter_context(PathManager.open(path, mode, **kwargs))


def _load_pycls(filename):
    """Reads checkpoints of pycls as Detectron2 does, but without executing code from them."""
    state = read_checkpoint(filename).get("model_state")
    check_parameters(state, filename)
    return {
        "model": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        "__author__": "pycls",
        "matching_heuristics": True,
    }


def _abridge(names, most=6):
    listed = ", ".join(names[:most])
    return f"{listed}, ..." if len(names) > most else listed
