"""Options that recipes leave to the images (docs/defaults.md)."""

CROPS = ("method.views.global_size", "method.views.local_sizes")
VIT = ("backbone.patch", "backbone.image_size")
SWIN = (*VIT, "backbone.dim", "backbone.depths", "backbone.heads", "backbone.window")
SHARP = ("method.teacher_temp.peak", "method.teacher_temp.end")
