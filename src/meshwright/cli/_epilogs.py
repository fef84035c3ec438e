"""Two real examples a command, shown at the end of its help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, str]] = {
    "meshwright": (
        "meshwright plan llama-3.1-8b --cluster h100x64 --batch 1024 --seq 8192",
        "meshwright models",
    ),
    "plan": (
        "meshwright plan llama-3.1-8b -c h100x64 --batch 1024 --seq 8192",
        "meshwright plan model.py:build -c cluster.toml --fix pp=1",
    ),
    "simulate": (
        "meshwright simulate llama-3.1-8b -c h100x64 --dp 8 --tp 8 --micro-batch 1",
        "meshwright simulate llama-3.1-8b-h100x64",
    ),
    "compare": (
        "meshwright compare gpt3-1.3b -c a100x8 --planners all",
        "meshwright compare gpt3-1.3b -c v100x32 --planners grid,./greedy_tp.py --budget 60",
    ),
    "show": ("meshwright show llama-3.1-8b-h100x64", "meshwright show llama-3.1-8b-h100x64 --text"),
    "verify": ("meshwright verify llama-3.1-8b-h100x64", "meshwright verify gpt2-localx4 --ranks 4"),
    "run": ("meshwright run gpt2-localx4 --steps 20", "meshwright run gpt2-localx4 --steps 20 --resume run/step-10"),
    "export": (
        "meshwright export llama-3.1-8b-h100x64 --to torchtitan",
        "meshwright export llama-3.1-8b-h100x64 --to megatron@0.16.1 --check",
    ),
    "replan": (
        "meshwright replan llama-3.1-8b-h100x64 -c h100x56 --lost 3",
        "meshwright replan gpt2-localx4 -c localx2 --resume run/step-10",
    ),
    "check": ("meshwright check grid", "meshwright check ./greedy_tp.py"),
    "new": ("meshwright new planner greedy_tp", "meshwright new planner greedy_tp --package"),
    "calibrate": ("meshwright calibrate", "meshwright calibrate --from-steps steps.toml -o our-stack"),
    "validate": ("meshwright validate", "meshwright validate --device h100 --max-error 14"),
    "planners": ("meshwright planners", "meshwright planners grid"),
    "models": ("meshwright models", "meshwright models llama-3.1-8b"),
    "clusters": ("meshwright clusters", "meshwright clusters h100"),
    "exporters": ("meshwright exporters", "meshwright exporters megatron"),
    "schema": ("meshwright schema plan", "meshwright schema problem.toml"),
}

EPILOG = {name: "\b\nExamples:\n" + "\n".join(f"  {e}" for e in pair) for name, pair in EXAMPLES.items()}
