#!/bin/sh
# On every host. Rules in a file would replace all of base.yml; in the command they replace their own.
python3 -m maxtext.trainers.pre_train.train maxtext.yml run_name=planned \
  "logical_axis_rules=[[embed, [fsdp, fsdp_transpose]], [embed_attn, [fsdp, fsdp_transpose]], [embed_moe, [fsdp, fsdp_transpose]], [embed_router, [fsdp, fsdp_transpose]], [embed_vocab, [fsdp, fsdp_transpose]], [q_lora, [fsdp, fsdp_transpose]], [kv_lora, [fsdp, fsdp_transpose]]]"
