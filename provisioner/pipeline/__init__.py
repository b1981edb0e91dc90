"""The steps of one job, from url to volume: plan, run, roll back."""
