#!/bin/sh
# On every host. Rules in a file would replace all of base.yml; in the command they replace their own.
python3 -m maxtext.trainers.pre_train.train maxtext.yml run_name=planned
