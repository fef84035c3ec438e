#!/usr/bin/env bash
# Megatron-LM 0.19.2: llama-3.1-8b on 16 devices.
# Not in the plan, to be given behind the name of this script: data, tokenizer, learning rate, checkpoints, and of the model its feed-forward size, activation, norms and positions.
set -euo pipefail
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
  --pipeline-model-parallel-size 2
  --context-parallel-size 1
  --overlap-grad-reduce
  --pipeline-model-parallel-layout 'Et|t|t|tL'
  --micro-batch-size 1
  --global-batch-size 64
  --recompute-granularity full
  --recompute-method uniform
  --recompute-num-layers 1
  --bf16
  --accumulate-allreduce-grads-in-fp32
  --optimizer adam
)
torchrun --nproc-per-node 8 --nnodes 2 --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" pretrain_gpt.py "${LAYOUT[@]}" "$@"
