"""Recipes of a second's work."""

from __future__ import annotations

RECIPE = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, finetune, prune, recover, evaluate]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 64, validation: 16, test: 8}, max_source_length: 96, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  load: {}
  finetune: {epochs: 1}
  prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}
  recover: {stage: finetune, epochs: 1}
  evaluate: {max_length: [8, 16]}
"""
