"""The functions of the compiled module that the fuzzer calls, and their arguments."""

from __future__ import annotations

# function -> (names of outputs, {tensor: its letters}, other arguments). A letter is a size that
# tensors share, a digit itself.
FUNCTIONS: dict[str, tuple[str, dict[str, str], str]] = {
    "mask_iou_forward": (
        "iou",
        {"iou": "GQ", "predictions": "BQhw", "targets": "Ghw", "owner": "G"},
        "threshold threads",
    ),
    "mask_points_forward": (
        "sampled targets points",
        {
            "sampled": "RK",
            "targets": "RK",
            "points": "RK2",
            "logits": "RHW",
            "masks": "Ghw",
            "index": "R",
        },
        "seed candidates kept threads",
    ),
    "mask_points_backward": (
        "grad_logits",
        {"grad_logits": "RHW", "grad_sampled": "RK", "points": "RK2"},
        "threads deterministic",
    ),
    "mask_points_backward_workspace": (
        "grad_logits",
        {"grad_logits": "RHW", "grad_sampled": "RK", "points": "RK2"},
        "deterministic",
    ),
    "mask_rle_forward": (
        "runs area box probability",
        {"runs": "GW", "area": "G", "box": "G4", "probability": "G", "logits": "Ghw"},
        "height width padded_height padded_width valid_height valid_width threads",
    ),
    "mask_rle_counts_forward": (
        "counts",
        {"counts": "R", "ends": "GW", "logits": "Ghw"},
        "height width padded_height padded_width valid_height valid_width threads",
    ),
    "masked_point_pool_forward": (
        "pooled weight",
        {
            "pooled": "GTC",
            "weight": "GT",
            "features": "BCHW",
            "masks": "Ghw",
            "owner": "G",
            "points": "BTK2",
        },
        "divide_by_points threads",
    ),
    "masked_point_pool_backward": (
        "grad_features",
        {
            "grad_features": "BCHW",
            "grad_pooled": "GTC",
            "weight": "GT",
            "masks": "Ghw",
            "owner": "G",
            "points": "BTK2",
        },
        "divide_by_points threads",
    ),
    "ms_deform_attn_forward": (
        "out",
        {
            "out": "BQE",
            "value": "BSND",
            "locations": "BQNLP2",
            "weights": "BQNLP",
            "reference": "BQL2",
        },
        "level_shapes threads",
    ),
    "ms_deform_attn_backward": (
        "grad_value grad_locations grad_weights grad_reference",
        {
            "grad_value": "BSND",
            "grad_locations": "BQNLP2",
            "grad_weights": "BQNLP",
            "grad_out": "BQE",
            "value": "BSND",
            "locations": "BQNLP2",
            "weights": "BQNLP",
            "reference": "BQL2",
            "grad_reference": "BQL2",
        },
        "level_shapes threads deterministic",
    ),
    "ms_deform_attn_backward_workspace": (
        "grad_value grad_locations grad_weights grad_reference",
        {
            "grad_value": "BSND",
            "grad_locations": "BQNLP2",
            "grad_weights": "BQNLP",
            "grad_out": "BQE",
            "value": "BSND",
            "locations": "BQNLP2",
            "weights": "BQNLP",
            "reference": "BQL2",
            "grad_reference": "BQL2",
        },
        "level_shapes deterministic",
    ),
    "quality_focal_loss_forward": (
        "loss grad_logits",
        {"loss": "R", "grad_logits": "RC", "logits": "RC", "label": "R", "iou": "R"},
        "gamma theta threads",
    ),
    "select_cpu_instruction_set": ("", {}, "name"),
    "cpu_instruction_set": ("", {}, ""),
    "cpu_instruction_sets": ("", {}, ""),
}
MAY_BE_ABSENT = ("grad_", "reference")
