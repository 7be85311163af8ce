"""Metrics by name: METRICS of generative models, FIRST_STAGE_METRICS of first stages."""

from ddpm_jax.measuring.caption_metrics import caption_accuracy, retrieval
from ddpm_jax.measuring.clip_score import clip_score
from ddpm_jax.measuring.distillation import distillation
from ddpm_jax.measuring.evaluation_settings import (
    ClipScore,
    FeatureQuality,
    FlowLikelihood,
    Likelihood,
    Memorization,
    SampleQuality,
    VariationalBound,
)
from ddpm_jax.measuring.feature_metrics import FEATURE_METRICS
from ddpm_jax.measuring.first_stage_metrics import elbo, reconstruction
from ddpm_jax.measuring.likelihood_metrics import (
    bits_per_dimension,
    bits_per_dimension_ode,
    progressive_coding,
)
from ddpm_jax.measuring.measurement import Metric
from ddpm_jax.measuring.memorization_metric import memorization
from ddpm_jax.measuring.sample_features import one_metric
from ddpm_jax.measuring.sample_metrics import classification_accuracy, frechet_pixels

METRICS = {
    "bpd": Metric(bits_per_dimension, VariationalBound),
    "bpd_ode": Metric(bits_per_dimension_ode, FlowLikelihood),
    "caption_accuracy": Metric(caption_accuracy, SampleQuality),
    "classification_accuracy": Metric(classification_accuracy, SampleQuality),
    "clip_score": Metric(clip_score, ClipScore),
    "distillation": Metric(distillation, SampleQuality),
    "frechet_pixels": Metric(frechet_pixels, SampleQuality),
    "memorization": Metric(memorization, Memorization),
    "rate_distortion": Metric(progressive_coding, VariationalBound),
    "retrieval": Metric(retrieval, SampleQuality),
    **{name: Metric(one_metric(name), FeatureQuality) for name in FEATURE_METRICS},
}
FIRST_STAGE_METRICS = {
    "elbo": Metric(elbo, Likelihood),
    "reconstruction": Metric(reconstruction, Likelihood),
}
