"""Detectron2's networks at small widths, with statistics and biases that are not trivial."""

import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model

ZOO = {
    "R18-FPN": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", {"depth": 18}),
    "R50-FPN": ("Cityscapes/mask_rcnn_R_50_FPN.yaml", {}),
    "R50-C4": ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", {}),
    "R50-DC5": ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", {}),
    "X101-FPN": ("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml", {"groups": 4}),
    "RetinaNet": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", {}),
    "SemanticFPN": ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", {}),
}


def build(name, seed=0):
    """A Detectron2 model from the zoo, a few channels wide, in eval mode."""
    path, options = ZOO[name]
    cfg = model_zoo.get_config(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = options.get("depth", min(cfg.MODEL.RESNETS.DEPTH, 101))
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        cfg.MODEL.RESNETS.NUM_GROUPS = options["groups"]
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8 // cfg.MODEL.RESNETS.NUM_GROUPS
    if cfg.MODEL.RESNETS.DEPTH == 18:  # Detectron2 builds it at one width only
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    randomize(model)
    return model


@torch.no_grad()
def randomize(module):
    """Weights at which the activations of a deep network neither die nor explode."""
    for child in module.modules():
        if isinstance(child, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.kaiming_normal_(child.weight)
            if child.bias is not None:
                child.bias.normal_(0, 0.1)
        if getattr(child, "running_var", None) is not None:
            child.running_var.uniform_(0.5, 2)
            child.running_mean.normal_(0, 0.1)
            child.weight.uniform_(0.5, 1)
            child.bias.normal_(0, 0.1)
        elif isinstance(child, torch.nn.GroupNorm):
            child.weight.uniform_(0.5, 1.5)
            child.bias.normal_(0, 0.1)


class Network(torch.nn.Module):
    """The part of a detector that runs block-sparse: backbone, then its dense head."""

    def __init__(self, model, wrap=lambda module: module):
        super().__init__()
        self.backbone = wrap(model.backbone)
        self.features = None
        if hasattr(model, "sem_seg_head"):
            self.head = wrap(model.sem_seg_head)
            self.as_dict = True
        elif hasattr(model, "proposal_generator"):
            self.head = wrap(model.proposal_generator.rpn_head)
            self.features = model.proposal_generator.in_features
            self.as_dict = False
        else:
            self.head = wrap(model.head)
            self.features = model.head_in_features
            self.as_dict = False

    def forward(self, image):
        features = self.backbone(image)
        head = (features, None) if self.as_dict else ([features[k] for k in self.features],)
        return features, self.head(*head)
