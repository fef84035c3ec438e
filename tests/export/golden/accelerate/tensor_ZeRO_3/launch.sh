#!/bin/sh
# train.py is your script, which imports settings.py.
# On machine K of 0 to 1: launch.sh K ADDRESS-OF-MACHINE-0
accelerate launch --config_file accelerate.yaml --machine_rank "$1" --main_process_ip "$2" --main_process_port 29400 train.py
