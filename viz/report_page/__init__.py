"""The page that report.py makes."""

SECTIONS = ("calibration", "selective", "logits", "features", "gradcam", "confusion", "mistakes")
# The section of each figure, for --figure.
FIGURES = {
    "reliability": "calibration",
    "risk_coverage": "selective",
    "near_zero_histogram": "logits",
    "top_against_mean": "logits",
    "max_logit": "logits",
    "projection": "features",
    "gradcam": "gradcam",
}
