"""Loading weights that must fit, and keeping what a policy has learned."""

import pickle

import torch
from detectron2.checkpoint import DetectionCheckpointer

from blockcopy_d2.data import redact

__all__ = ["PolicyCheckpointer", "WeightsCheckpointer"]


class WeightsCheckpointer(DetectionCheckpointer):
    """
    Detectron2's checkpointer for a model that is to be run, not trained: parameters that the file
    lacks would stay random, so a file that does not fit is an error. What the policy lacks is not:
    a detector's file has no policy.

    Checkpoints in torch's format (.pth) are loaded without executing code from them. Detectron2's
    model zoo files (.pkl) are pickles by nature; load them from sources you trust.
    """

    # Parameters that may be missing.
    optional_prefix = "policy."

    def load(self, path, *args, **kwargs):
        """
        Args:
            path (str): a file, or a URL that Detectron2 resolves.

        Raises:
            ValueError: no path is given, or the file does not fit; names the parameters.
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
        self._path = redact(path)
        return super().load(path, *args, **kwargs)

    def _torch_load(self, f):
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{f} is no checkpoint, or holds more than tensors and plain values; it is not"
                f" loaded, since that could execute code from it: {error}"
            ) from error
        except (RuntimeError, EOFError) as error:
            raise ValueError(f"{f} is not a readable checkpoint: {error}") from error

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
                f"The weights {self._path} do not fit the model: {'; '.join(problems)}. Use the"
                " config that the weights were trained with."
            )
        incompatible.missing_keys.clear()
        super()._log_incompatible_keys(incompatible)


class PolicyCheckpointer(WeightsCheckpointer):
    """Saves and loads a policy with its learner, and nothing of the task network."""

    optional_prefix = ""

    def __init__(self, policy, save_dir="", *, learner=None):
        """
        Args:
            policy (Policy):
            save_dir (str):
            learner (OnlineLearner or None): of this policy.
        """
        super().__init__(policy, save_dir, **({"learner": learner} if learner else {}))


def _abridge(names, most=6):
    listed = ", ".join(names[:most])
    return f"{listed}, ..." if len(names) > most else listed
