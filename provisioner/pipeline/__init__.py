"""One job's way from a url to a volume: plan, run, undo."""
