"""Options that recipes leave to the images and to the length of a run (docs/defaults.md)."""

CROPS = ("method.views.global_size", "method.views.local_sizes")
VIT = ("backbone.patch", "backbone.image_size")
SWIN = (*VIT, "backbone.dim", "backbone.depths", "backbone.heads", "backbone.window")
SCALE = "method.views.global_scale"
SHARP = ("method.teacher_temp.peak", "method.teacher_temp.end")
TEACHER = ("method.teacher_momentum.start", "method.teacher_momentum.peak")
PROTOTYPES = "method.head.prototypes"
KEYS = ("method.momentum.start", "method.momentum.peak")
