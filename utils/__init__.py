"""What serves every room and knows none: configs, processes, files, schedules, logs."""
