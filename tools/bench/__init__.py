"""Speed, as ratios that are measured in one run: `python -m tools.bench [NAME]`."""
