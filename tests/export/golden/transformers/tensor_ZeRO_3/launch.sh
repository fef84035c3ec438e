#!/bin/sh
# train.py is your script, which imports settings.py.
torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --rdzv-id meshwright train.py
