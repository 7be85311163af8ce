"""Names that other libraries give our flags, to suggest ours instead.

Those of the config fields are in `experiments.field_synonyms`.
"""

FLAGS = {
    "ckpt": "checkpoint checkpoint_path ckpt_path model_path model model_dir resume "
    "pretrained load "
    "pretrained_model_name_or_path workdir run",
    "ckpt_step": "checkpoint_step step iteration global_step",
    "out": "output output_dir outdir out_dir save_dir results_dir save_path",
    "workdir": "output_dir outdir out_dir logdir log_dir save_dir results_dir experiment_dir "
    "exp_dir",
    "config": "cfg config_file config_path base",
    "num_samples": "n n_samples num_images num_fid_samples nsamples",
    "batch_size": "bs batch eval_batch_size per_proc_batch_size",
    "steps": "num_inference_steps num_sampling_steps ddim_steps inference_steps num_steps "
    "timestep_respacing "
    "sampling_steps diffusion_steps",
    "sampler": "scheduler sampling_method solver sampler_name method",
    "sampler_options": "eta ddim_eta order churn",
    "spacing": "timestep_spacing schedule sigmas noise_schedule",
    "guidance_scale": "cfg_scale cfg guidance scale classifier_scale w",
    "guidance_rescale": "cfg_rescale",
    "labels": "class_labels class_label classes class label",
    "init_image": "init_img image img2img input_image init",
    "strength": "denoising_strength denoise noise_strength",
    "inpaint": "inpainting inpaint_image",
    "mask": "mask_image",
    "low_res": "super_resolution upscale low_resolution lr_image",
    "clip": "clip_denoised clip_sample thresholding",
    "platform": "device accelerator backend gpu cpu tpu",
    "metric": "metrics fid eval",
    "images": "input1 path1 samples_path",
    "reference": "ref real real_path ref_path input2 path2 fid_stats stats_path",
    "features": "feature_extractor extractor fid_features",
    "feature_weights": "inception_path feature_extractor_weights_path detector",
    "resize": "resizer interpolation",
    "format": "save_format output_format",
    "data_dir": "dataset_path data_path train_data_dir dataset_dir root",
    "raw_weights": "no_ema use_raw",
    "wandb": "wandb_project report_to",
    "num_processes": "world_size num_hosts",
    "process_id": "rank process_index host_id",
    "coordinator": "master_addr coordinator_address",
}
