"""
Hooks of the :class:`EvaluationLoop`. They work on ``trainer.runs`` of the current frame. The order
of registration matters if their docstrings say so.
"""

import contextlib
import dataclasses
import logging

import torch
from detectron2.engine import HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.utils import comm
from tqdm import tqdm

from blockcopy_d2.evaluation.gathering import gather
from blockcopy_d2.modeling import StageTimer, StreamPool
from blockcopy_d2.motion import moved_cells
from blockcopy_d2.sparse import BlockGrid

from .loop import ModelRun

__all__ = [
    "ComparisonHook",
    "EfficiencyHook",
    "GainShareHook",
    "OnlinePolicyHook",
    "PolicySavingHook",
    "ProgressHook",
    "ScoringError",
    "ScoringHook",
]


class OnlinePolicyHook(HookBase):
    """Records the learner's report of every frame that the policy learns from."""

    def after_step(self):
        run = self.trainer.runs.get("blockcopy")
        if run is None or not run.result.learned:
            return
        learned = run.result.learned
        values = torch.stack([value.float() for value in learned.values()]).tolist()
        for name, value in zip(learned, values, strict=True):
            self.trainer.storage.put_scalar(f"policy/{name}", value)


class ComparisonHook(HookBase):
    """
    Runs other models on the frame that BlockCopy just ran, so that other load on the machine
    affects all of them alike: "dense", this engine with all blocks and no policy, and "stock", a
    model without BlockCopy.
    """

    def __init__(self, *, dense, stock=None):
        """
        Args:
            dense (bool): run the dense engine.
            stock (nn.Module or None): a Detectron2 model in inference mode.
        """
        self._dense = dense
        self._stock = stock
        self._streams = StreamPool(max_streams=1)
        self._warm = False

    @torch.no_grad()
    def after_step(self):
        trainer = self.trainer
        if "blockcopy" not in trainer.runs:
            return
        image_size = trainer.runs["blockcopy"].result.grid.image_size
        if not self._warm:
            self._warm_up(trainer.model, trainer.inputs, image_size)
        if self._stock is not None:
            trainer.runs["stock"] = self._run_stock(trainer.model.device, trainer.inputs)
        if self._dense:
            trainer.runs["dense"] = self._run_dense(trainer.model, trainer.inputs, image_size)

    def _warm_up(self, model, inputs, image_size):
        """A library's first calls, and capturing graphs, do not count as the cost of a frame."""
        if self._stock is not None:
            self._stock([inputs])
        stream = self._streams.get(inputs["video_id"], 0)
        if self._dense:
            self._run_dense(model, {**inputs, "frame_index": 0}, image_size)
            stream.reset()
        self._warm = True

    def _run_stock(self, device, inputs):
        timer = StageTimer(device)
        with timer.stage("frame"):
            output = self._stock([inputs])[0]
        return ModelRun(output=output, macs=0, seconds=timer.seconds)

    def _run_dense(self, model, inputs, image_size):
        grid = BlockGrid.full(
            block_size=model.block_size, image_size=image_size, device=model.device
        )
        stream = self._streams.get(inputs["video_id"], inputs["frame_index"])
        run = ModelRun.of(model, inputs, stream, grid=grid)

        def seconds():
            # The other stages serve the policy, and there is none.
            stages = run.result.seconds
            return {name: stages[name] for name in ("network", "heads")}

        return dataclasses.replace(run, seconds=seconds)


class ScoringError(RuntimeError):
    """Outputs that could not be scored. The message names data sets, models and reasons."""


class ScoringHook(HookBase):
    """
    Scores the outputs of the models that have an evaluator, each with its own. Failures on the way
    to a score are named in ``failures``. They end neither the run nor other models' scores.

    Attributes:
        scores (dict[str, dict]): by model, {task: {metric: value}}; filled by :meth:`score`.
        failures (dict[str, str]): by model, why it has no score.
    """

    def __init__(self, evaluators):
        """
        Args:
            evaluators (dict[str, DatasetEvaluator]): by model.
        """
        self._evaluators = evaluators
        self.scores = {}
        self.failures = {}

    @property
    def models(self):
        """list[str]: models to score."""
        return list(self._evaluators)

    def before_train(self):
        for evaluator in self._evaluators.values():
            evaluator.reset()

    def after_step(self):
        for name, run in self.trainer.runs.items():
            if name in self._evaluators and name not in self.failures:
                with self._naming_failures(name):
                    self._evaluators[name].process([self.trainer.inputs], [run.output])

    def score(self):
        """
        Compute the scores of the frames that were run. All processes of a job call it. A process
        whose part failed leaves all of them without this score.
        """
        for failures in gather(self.failures):
            self.failures = {**failures, **self.failures}
        for name, evaluator in self._evaluators.items():
            # Called even after a failure: other processes wait for this one's part.
            with self._naming_failures(name):
                scores = evaluator.evaluate()
                if name not in self.failures:
                    self.scores[name] = scores

    @contextlib.contextmanager
    def _naming_failures(self, name):
        try:
            yield
        except Exception as error:
            self.failures.setdefault(name, f"{type(error).__name__}: {error}")
            logging.getLogger(__name__).exception("The outputs of %s cannot be scored:", name)


class EfficiencyHook(HookBase):
    """
    Records time, multiply-accumulates, executed blocks and moved cells of every frame. Register it
    after the hooks that run models or count to a frame's time.
    """

    def __init__(self, record):
        """
        Args:
            record (RunRecord):
        """
        self._record = record
        self._steps = 0

    def after_step(self):
        self._steps += 1
        trainer, record = self.trainer, self._record
        if not trainer.runs:
            return
        for name, run in trainer.runs.items():
            seconds = run.seconds()
            record.meter(name).add(seconds, run.macs)
            trainer.storage.put_scalar(f"{name}/ms", 1000 * sum(seconds.values()))
            if run.macs:
                trainer.storage.put_scalar(f"{name}/gmacs", run.macs / 1e9)
            if name == "blockcopy":
                trainer.storage.put_scalars(
                    **{f"ms/{stage}": 1000 * value for stage, value in seconds.items()}
                )
        result = trainer.runs["blockcopy"].result
        if result.is_first:
            record.clips += 1
        else:
            record.executed.append(result.grid.fraction)
            trainer.storage.put_scalar("executed_fraction", result.grid.fraction)
        if result.field is not None:
            moved = moved_cells(result.field).float().mean().item()
            trainer.storage.put_scalar("moved_fraction", moved)

    def after_train(self):
        trainer, record = self.trainer, self._record
        record.failures = [str(error) for error in trainer.failures]
        if trainer.interruption is not None:
            record.interruptions.append(
                f"{trainer.interruption} after {self._steps} of"
                f" {trainer.max_iter - trainer.start_iter} frames{_of_this_process()}"
            )


class GainShareHook(HookBase):
    """
    Compares the executed blocks with the places where dense outputs change. Needs the "dense" run.
    """

    def __init__(self, gain_share):
        """
        Args:
            gain_share (GainShare):
        """
        self._gain_share = gain_share

    def after_step(self):
        if "dense" not in self.trainer.runs:
            return
        result = self.trainer.runs["blockcopy"].result
        dense = self.trainer.runs["dense"].result
        frame = result.frame.nan_to_num()
        if dense.is_first:
            self._gain_share.start(frame)
        else:
            gain = self.trainer.model.information_gain(dense)
            self._gain_share.update(frame, result.grid.active, gain)


class ProgressHook(HookBase):
    """A progress bar over the frames, with the executed fraction and the speed of BlockCopy."""

    def __init__(self, title):
        """
        Args:
            title (str): shown in front of the bar.
        """
        self._title = title
        self._bar = None  # also after a run that failed before it began

    def before_train(self):
        self._bar = tqdm(
            desc=self._title,
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            unit="frame",
            disable=not comm.is_main_process(),
        )

    def after_step(self):
        histories = self.trainer.storage.histories()
        if "executed_fraction" in histories and "blockcopy/ms" in histories:
            executed = histories["executed_fraction"].avg(50)
            milliseconds = histories["blockcopy/ms"].avg(50)
            text = f"{executed:.0%} executed, {milliseconds:.0f} ms"
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def after_train(self):
        if self._bar is not None:
            self._bar.close()


class PolicySavingHook(d2_hooks.PeriodicCheckpointer):
    """
    Saves the policy every so many frames, at the end, and when the run ends early, so that nothing
    it has learned is lost. Register it after the hook that teaches it, on the main process.
    """

    def __init__(self, checkpointer, period):
        """
        Args:
            checkpointer (PolicyCheckpointer):
            period (int): frames between two checkpoints.
        """
        super().__init__(checkpointer, period, file_prefix=checkpointer.file_prefix)
        self._last = self._saved = None

    def after_step(self):
        self._last = self.trainer.iter
        super().after_step()
        if (self._last + 1) % self.period == 0:
            self._saved = self._last

    def after_train(self):
        if not self.trainer.finished and self._last != self._saved:
            self.checkpointer.save(f"{self.file_prefix}_{self._last:07d}", iteration=self._last)
            logging.getLogger(__name__).warning(
                "The run ended early (%s). The policy is saved in %s; --resume continues there.",
                self.trainer.interruption,
                self.checkpointer.save_dir,
            )


def _of_this_process():
    size = comm.get_world_size()
    return f", process {comm.get_rank()} of {size}" if size > 1 else ""
