#!/bin/sh
# DeepSpeed 0.19.8, 16 ranks. Not in a plan: model, data, optimizer and learning rate, checkpoint folder.
# train.py calls deepspeed.initialize with ds_config.json.
deepspeed --num_nodes 2 --hostfile hostfile --num_gpus 8 train.py --deepspeed --deepspeed_config ds_config.json
