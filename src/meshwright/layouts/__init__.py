"""Expert layouts: data, tensor, sequence, context, expert and pipeline parallelism with ZeRO, as plans of any captured graph.

style       what decides how ops are lowered           computing   the rules, op by op
expert      what a graph can have cut                  again       what is recomputed
point       a layout in words                          units       what a stage takes whole
build       point -> plan                              recognise   plan -> point, or what is not of this kind
meaning     what entries come to, under whatever names
"""
