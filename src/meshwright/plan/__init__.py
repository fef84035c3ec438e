"""The decision and the question: plans, problems, layout algebra, validation, moves, JSON, schedules."""
