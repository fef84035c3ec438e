"""Plans as settings of the trainers that people run: one file a target.

model, setup   what trainers ask of a model; a plan in their words
said, base     what a target makes of each word; the shape of an exporter
outcome        export: level, files, sentences, both prices
reading        import: a trainer's files as a plan
"""
