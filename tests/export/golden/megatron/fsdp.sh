#!/usr/bin/env bash
# Megatron-LM 0.19.2: llama-3.1-8b on 16 devices.
# Not in the plan, to be given behind the name of this script: data, tokenizer, learning rate, checkpoints, and of the model its feed-forward size, activation, norms and positions.
set -euo pipefail
unset CUDA_DEVICE_MAX_CONNECTIONS  # 1 would serialise what sharded data parallelism overlaps
LAYOUT=(
  --num-layers 4
  --num-attention-heads 8
  --hidden-size 64
  --group-query-attention
  --num-query-groups 4
  --seq-length 32
  --max-position-embeddings 32
  --untie-embeddings-and-output-weights
  --tensor-model-parallel-size 1
  --pipeline-model-parallel-size 1
  --context-parallel-size 2
  --cp-comm-type all_gather
  --num-distributed-optimizer-instances 2
  --use-megatron-fsdp
  --use-distributed-optimizer
  --data-parallel-sharding-strategy optim_grads_params
  --outer-dp-sharding-strategy no_shard
  --overlap-grad-reduce
  --overlap-param-gather
  --ckpt-format fsdp_dtensor
  --micro-batch-size 1
  --global-batch-size 64
  --recompute-granularity selective
  --recompute-modules core_attn layernorm
  --bf16
  --megatron-fsdp-main-grads-dtype fp32
  --megatron-fsdp-grad-comm-dtype fp32
  --accumulate-allreduce-grads-in-fp32
  --optimizer adam
)
torchrun --nproc-per-node 8 --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" pretrain_gpt.py "${LAYOUT[@]}" "$@"
