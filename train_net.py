#!/usr/bin/env python3
"""
Trains a detector, warms a BlockCopy policy, or evaluates one on video clips.

With BlockCopy off this is Detectron2's training script. With ``MODEL.BLOCKCOPY.ENABLED True`` the
weights of the detector stay as they are: training warms the policy on the clips of
``DATASETS.TRAIN``, ``--eval-only`` runs the clips of ``DATASETS.TEST`` and scores them.
"""

import blockcopy_d2.quiet_imports  # noqa: F401  isort:skip  comes before all others

import os
import weakref

from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import verify_results
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm

from blockcopy_d2.data import VisibleBoxMapper, build_sem_seg_train_mapper
from blockcopy_d2.engine import (
    SafeCheckpointer,
    WeightsCheckpointer,
    default_argument_parser,
    evaluate_clips,
    launch,
    setup,
    warm_policy,
)
from blockcopy_d2.engine.arguments import errors_end_the_program
from blockcopy_d2.evaluation import build_evaluator
from blockcopy_d2.evaluation.gathering import wait_for_all


class Trainer(DefaultTrainer):
    """
    Detectron2's trainer with the evaluators of this project's data sets, the additions of its
    DeepLab project for semantic segmentation, and visible boxes for MGAN.
    """

    def build_hooks(self):
        # The hooks use the checkpointer, so it is replaced before.
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return super().build_hooks()

    def resume_or_load(self, resume=True):
        extra = self.checkpointer.resume() if resume else None
        if extra is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        else:
            self.start_iter = self.iter + 1

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        results = super().test(cfg, model, evaluators)
        # Waits here rather than at the barrier that follows during training, which has a short
        # limit.
        wait_for_all()
        return results

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def build_train_loader(cls, cfg):
        if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            return build_detection_train_loader(cfg, mapper=build_sem_seg_train_mapper(cfg))
        if cfg.MODEL.ROI_HEADS.NAME == "MGANROIHeads":
            return build_detection_train_loader(cfg, mapper=VisibleBoxMapper(cfg, is_train=True))
        return super().build_train_loader(cfg)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)


def main(args):
    cfg = setup(args)
    if args.eval_only:
        if cfg.MODEL.BLOCKCOPY.ENABLED:
            results = evaluate_clips(cfg, resume=args.resume)
        else:
            model = Trainer.build_model(cfg)
            WeightsCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(
                cfg.MODEL.WEIGHTS, resume=args.resume
            )
            results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    if cfg.MODEL.BLOCKCOPY.ENABLED:
        return warm_policy(cfg, resume=args.resume)
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty: there is nothing to train on. Give a --config-file, or "
            "DATASETS.TRAIN \"('coco_2017_train',)\" at the end of the command."
        )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    with errors_end_the_program():
        launch(main, arguments)
