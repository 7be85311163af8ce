"""Names that other libraries give the fields of our config, to suggest ours instead.

Names are in lower case; `_` and `-` count as the same.
"""

from collections.abc import Iterable, Mapping

SYNONYMS = {
    "optimizer.learning_rate": "lr base_lr max_lr init_lr",
    "optimizer.b1": "beta1 adam_beta1",
    "optimizer.b2": "beta2 adam_beta2",
    "optimizer.eps": "adam_epsilon epsilon adam_eps",
    "optimizer.weight_decay": "wd adam_weight_decay",
    "optimizer.warmup_steps": "lr_warmup lr_warmup_steps num_warmup_steps",
    "optimizer.decay": "lr_scheduler lr_schedule scheduler lr_decay",
    "optimizer.clip_norm": "grad_clip max_grad_norm gradient_clip_val clip_grad_norm "
    "clip_grad gradient_clipping",
    "optimizer.accumulate_steps": "gradient_accumulation_steps grad_accum accumulation_steps "
    "gradient_accumulate_every",
    "train.batch_size": "bs batch train_batch_size global_batch_size total_batch_size microbatch",
    "train.num_steps": "steps max_steps train_steps num_train_steps max_train_steps "
    "train_num_steps total_steps "
    "num_iterations iterations iters max_iters n_iters epochs num_epochs num_train_epochs "
    "max_epochs n_epochs",
    "train.log_every": "log_interval logging_steps log_freq log_every_n_steps log_steps",
    "train.sample_every": "sample_interval save_and_sample_every sample_freq eval_every",
    "train.num_samples": "n_samples num_images",
    "train.sample_steps": "sampling_timesteps num_inference_steps ddim_steps",
    "checkpoint.save_every": "save_interval checkpointing_steps save_steps checkpoint_every "
    "save_freq ckpt_every",
    "checkpoint.keep_last": "checkpoints_total_limit max_to_keep keep save_total_limit",
    "data.image_size": "resolution img_size image_resolution input_size",
    "data.channels": "in_channels num_channels_in image_channels n_channels",
    "data.name": "dataset dataset_name data dataset_type",
    "data.data_dir": "dataset_path data_path train_data_dir dataset_dir root image_dir folder",
    "data.flip": "random_flip hflip horizontal_flip augment_horizontal_flip mirror xflip",
    "diffusion.num_timesteps": "timesteps t diffusion_steps num_diffusion_timesteps "
    "num_train_timesteps n_timesteps "
    "noise_steps",
    "diffusion.schedule": "beta_schedule noise_schedule",
    "diffusion.parameterization": "prediction_type pred_type predict target model_mean_type",
    "diffusion.variance": "learn_sigma variance_type model_var_type sigma_learn",
    "diffusion.loss": "loss_type objective_type",
    "diffusion.weighting": "loss_weighting snr_gamma min_snr min_snr_gamma loss_weight",
    "diffusion.timestep_sampling": "schedule_sampler t_sampling",
    "model.ch": "dim base_channels model_channels num_channels hidden_channels nf base_dim",
    "model.ch_mult": "dim_mults channel_mult ch_mults channel_mults channel_multiplier "
    "block_out_channels",
    "model.num_res_blocks": "layers_per_block num_resnet_blocks num_resblocks n_res_blocks",
    "model.attn_resolutions": "attention_resolutions attn attention_levels",
    "model.head_channels": "num_head_channels attention_head_dim dim_head",
    "model.num_heads_up": "num_heads_upsample",
    "model.resampling": "resblock_updown conv_resample",
    "model.scale_shift_norm": "use_scale_shift_norm resnet_time_scale_shift",
    "model.pool": "classifier_pool",
    "model.dtype": "fp16 bf16 use_fp16 use_bf16 mixed_precision precision amp",
    "model.remat": "gradient_checkpointing use_checkpoint grad_checkpoint checkpointing",
    "ema.decay": "ema_decay ema_rate ema_beta ema ema_max_decay",
    "condition.num_classes": "n_classes classes num_labels class_cond nb_classes",
    "condition.label_dropout": "class_dropout class_dropout_prob cfg_dropout uncond_prob "
    "p_uncond cond_drop_prob "
    "drop_prob conditioning_dropout_prob",
    "first_stage.ckpt": "vae autoencoder first_stage_path pretrained_vae vae_path",
    "first_stage.latent_scale": "scale_factor scaling_factor",
    "first_stage.latent_channels": "z_channels latent_dim embed_dim",
    "first_stage.num_codes": "codebook_size n_embed num_embeddings",
    "first_stage.beta": "kl_weight kld_weight",
    "seed": "random_seed global_seed manual_seed",
    "parallel": "strategy fsdp ddp",
}


def ours(name: str, table: Mapping[str, str], there: Iterable[str]) -> str | None:
    """Return our name for what others call `name`, if it is one of those in `there`."""
    name = name.lower().replace("-", "_")
    there = set(there)
    return next(
        (own for own, others in table.items() if own in there and name in others.split()), None
    )
