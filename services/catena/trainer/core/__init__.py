"""Jobs, rows, schedules, verdicts: everything about training that needs no disk, network or torch."""
